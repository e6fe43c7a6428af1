"""A few samples at a time on JAX, so that intermediate results stay in the cache and are not kept."""

import math

from keras_dualstream.ops.compiler import jax_on_cpu

# Elements of the largest intermediate result of a piece.
PIECE = 2**20


def in_pieces(function, shape, *tensors, at_once=None, recompute=True):
    """`function(*tensors)`; where that is large, on JAX, some samples after the other.

    XLA has one buffer for all intermediate results of a model and gives it back
    after every step, so that the system clears each page again: 1.8 of 6.5 seconds of
    CPU time in Dual-ViT-S's training step, of 3.4 seconds on two cores. Here the
    pieces share a few pages; with the attention's own gradient it takes 2.6 seconds.

    Args:
        function: function of tensors, sample by sample, of one result.
        shape: tuple, the shape of its largest intermediate result, whose first axis is the batch; at once
            where a size is no int.
        *tensors: float tensors `(batch, ...)`.
        at_once: int. Elements up to which all samples go at once; `None` for those of a piece. Defaults to `None`.
        recompute: bool. Whether the backward pass of each piece starts with its forward pass. Defaults to `True`.

    Returns:
        Tensor `(batch, ...)`.
    """
    known = all(isinstance(size, int) for size in shape)
    at_once = PIECE if at_once is None else at_once
    if not known or math.prod(shape) <= at_once or not _traced_by_jax(tensors[0]):
        return function(*tensors)
    batch, count = shape[0], _pieces(shape)
    if count == 1:
        return function(*tensors)
    import jax

    pieces = tuple(tensor.reshape(count, batch // count, *tensor.shape[1:]) for tensor in tensors)
    function = jax.checkpoint(function) if recompute else function
    results = jax.lax.map(lambda piece: function(*piece), pieces)
    return results.reshape(batch, *results.shape[2:])


def _pieces(shape):
    """How many pieces of whole samples share the batch evenly; 1 where only much smaller ones than `PIECE` would."""
    batch, elements = shape[0], math.prod(shape)
    fitting = (count for count in range(2, batch + 1) if batch % count == 0 and elements <= count * PIECE)
    count = next(fitting, batch)
    return 1 if elements * 4 < count * PIECE else count


def _traced_by_jax(x):
    """Whether JAX traces for a CPU: where operations are called one by one, each call would compile the loop."""
    if not jax_on_cpu():
        return False
    import jax

    return isinstance(x, jax.core.Tracer)
