"""A few samples at a time on JAX, so that intermediate results stay in the cache and are not kept."""

import functools
import math

from keras_dualstream.ops.compiler import jax_on_cpu
from keras_dualstream.ops.jax_recomputation import keep

# Elements of the largest intermediate result of a piece.
PIECE = 2**20


def in_pieces(function, shape, *tensors):
    """`function(*tensors)`; where that is large, on JAX, some samples after the other.

    The backward pass of each piece starts with its forward pass, and there are no forward-mode derivatives.

    XLA has one buffer for all intermediate results of a model and gives it back
    after every step, so that the system clears each page again: 1.8 of 6.5 seconds of
    CPU time in Dual-ViT-S's training step, of 3.4 seconds on two cores. Here the
    pieces share a few pages; with the attention's own gradient it takes 2.6 seconds.
    The loop is written out, because that of `jax.lax.map` starts from zeros, which XLA
    writes at the start of the step and keeps: with them, and with the copies of which
    `jax_linear` tells, Dual-ViT-S' buffer was 1,069 MB, without both 886.

    Args:
        function: function of tensors, sample by sample, of one result.
        shape: tuple, the shape of its largest intermediate result, whose first axis is the batch; at once
            where a size is no int.
        *tensors: float tensors `(batch, ...)`.

    Returns:
        Tensor `(batch, ...)`.
    """
    count = count_pieces(shape)
    if count == 1 or not traced_by_jax(tensors[0]):
        return function(*tensors)
    import jax

    shapes = [jax.ShapeDtypeStruct((x.shape[0] // count, *x.shape[1:]), x.dtype) for x in tensors]
    return _recomputed()(*_with_weights(function, shapes), count, tensors)


def _with_weights(function, shapes):
    """The arrays that a function reads beside its arguments, and the function of these and of the arguments.

    `jax.closure_convert` does so too, and keeps the layers whose functions it converted for ever.
    """
    import jax
    import jax.numpy as jnp

    # JAX remembers functions: a new one, which is forgotten.
    traced = jax.make_jaxpr(lambda *piece: function(*piece))(*shapes)
    varying = [jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in traced.consts]
    others = [x for x, varies in zip(traced.consts, varying, strict=True) if not varies]

    def compute(weights, *piece):
        weights, constants = iter(weights), iter(others)
        read = [next(weights if varies else constants) for varies in varying]
        return jax.core.eval_jaxpr(traced.jaxpr, read, *piece)[0]

    return [x for x, varies in zip(traced.consts, varying, strict=True) if varies], compute


def count_pieces(shape, at_once=None):
    """How many pieces of whole samples share the batch evenly.

    Args:
        shape: tuple as `in_pieces` takes it.
        at_once: int. Elements up to which all samples go at once; `None` for those of a piece. Defaults to `None`.

    Returns:
        Int; 1 where a size is unknown, or only pieces much smaller than `PIECE` would share the batch.
    """
    known = all(isinstance(size, int) for size in shape)
    if not known or math.prod(shape) <= (PIECE if at_once is None else at_once):
        return 1
    batch, elements = shape[0], math.prod(shape)
    fitting = (count for count in range(2, batch + 1) if batch % count == 0 and elements <= count * PIECE)
    count = next(fitting, batch)
    return 1 if elements * 4 < count * PIECE else count


def map_pieces(function, count, *arrays):
    """A function of some samples after the other, on JAX.

    Args:
        function: function of as many arrays as there are, of some samples of each. Returns a pair: a tree of arrays
            of as many samples, and a tree of arrays to be summed up.
        count: int, 1 for no loop.
        *arrays: float arrays `(batch, ...)`, first the one that is there last.

    Returns:
        The pair of all samples and the sums.
    """
    import jax
    import jax.numpy as jnp
    from jax import lax

    if count == 1:
        return function(*arrays)
    size = arrays[0].shape[0] // count

    def compute(piece):
        return function(*(lax.dynamic_slice_in_dim(array, piece * size, size) for array in arrays))

    def add(piece, totals):
        results, terms = compute(piece)
        write = functools.partial(lax.dynamic_update_slice_in_dim, start_index=piece * size, axis=0)
        return jax.tree.map(write, totals[0], results), jax.tree.map(jnp.add, totals[1], terms)

    # Zeros that wait for the first array: XLA would write constants at the start of a step, and keep them until here.
    zero = 0 * arrays[0][(0,) * arrays[0].ndim]
    results, terms = jax.eval_shape(compute, 0)
    results = jax.tree.map(lambda x: jnp.full((count * size, *x.shape[1:]), zero, x.dtype), results)
    terms = jax.tree.map(lambda x: jnp.full(x.shape, zero, x.dtype), terms)
    return lax.fori_loop(0, count, add, (results, terms))


@functools.cache
def _recomputed():
    import jax

    @functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
    def compute(weights, function, count, tensors):
        return map_pieces(lambda *piece: (function(weights, *piece), ()), count, *tensors)[0]

    def forward(weights, function, count, tensors):
        return jax.tree.map(keep, compute(weights, function, count, tensors)), (weights, tensors)

    def backward(function, count, saved, upstream):
        weights, tensors = saved

        def gradients(upstream, *piece):
            return jax.vjp(lambda piece, weights: function(weights, *piece), piece, weights)[1](upstream)

        for_tensors, for_weights = map_pieces(gradients, count, upstream, *tensors)
        return for_weights, for_tensors

    compute.defvjp(forward, backward)
    return compute


def traced_by_jax(x):
    """Whether JAX traces for a CPU: where operations are called one by one, each call would compile the loop."""
    if not jax_on_cpu():
        return False
    import jax

    return isinstance(x, jax.core.Tracer)
