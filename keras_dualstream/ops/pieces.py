"""A few samples at a time on JAX, so that intermediate results stay in the cache and are not kept."""

import math

import keras

from keras_dualstream.ops.compiler import xla_on_cpu

# Elements of the largest intermediate result of a piece.
PIECE = 2**20


def in_pieces(function, shape, *tensors, at_once=PIECE, recompute=True):
    """`function(*tensors)`; where that is large, on JAX, some samples after the other.

    XLA has one buffer for all intermediate results of a model and gives it back
    after every step, so that the system clears each page again: a third of
    Dual-ViT-S's training step on two cores. Here the pieces share a few pages.

    Args:
        function: function of tensors, sample by sample, of one result.
        shape: tuple of int, the shape of its largest intermediate result, whose first axis is the batch.
        *tensors: float tensors `(batch, ...)`.
        at_once: int. Elements up to which all samples go at once. Defaults to `2**20`.
        recompute: bool. Whether the backward pass of each piece starts with its forward pass. Defaults to `True`.

    Returns:
        Tensor `(batch, ...)`.
    """
    batch, known = shape[0], all(isinstance(size, int) for size in shape)
    if not known or batch == 1 or math.prod(shape) <= at_once or not _traced_by_jax(tensors[0]):
        return function(*tensors)
    import jax

    count = next(n for n in range(2, batch + 1) if batch % n == 0 and (math.prod(shape) <= n * PIECE or n == batch))
    pieces = tuple(tensor.reshape(count, batch // count, *tensor.shape[1:]) for tensor in tensors)
    function = jax.checkpoint(function) if recompute else function
    results = jax.lax.map(lambda piece: function(*piece), pieces)
    return results.reshape(batch, *results.shape[2:])


def _traced_by_jax(x):
    """Whether JAX traces for a CPU; called one by one, operations would be compiled at each call."""
    if keras.config.backend() != "jax" or not xla_on_cpu():
        return False
    import jax

    return isinstance(x, jax.core.Tracer)
