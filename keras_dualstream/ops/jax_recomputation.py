"""What a backward pass on JAX computes again, so that the forward pass need not keep it."""

import functools

from keras_dualstream.ops.compiler import jax_on_cpu
from keras_dualstream.ops.jax_program import apart


def after(upstream, x):
    """`x`, but not before the upstream gradient is there.

    XLA finds what a backward pass computes from the forward pass' arrays alone to be
    ready before, computes it early, and keeps it until it is needed; on CPU it has no
    regard for `jax.lax.optimization_barrier`, by which `jax.checkpoint` prevents that,
    and which is all there is elsewhere. One number of the upstream gradient, times zero,
    makes it wait. Early came normalised maps, windows of convolutions, transposed tokens,
    and statistics repeated to the size of the map: without these the buffer of DFvT-T's
    training step is 203 instead of 357 MB, which the system clears page by page at every
    step, and the step takes a sixth less time.

    Args:
        upstream: float array of any shape.
        x: float array.

    Returns:
        Array equal to `x`; on a CPU NaN where the first number of `upstream` is not finite.
    """
    import jax.numpy as jnp
    from jax import lax

    if not jax_on_cpu():
        return lax.optimization_barrier(x)
    # A sum of one number, or of none where there is none.
    return x + (0 * jnp.sum(upstream[(slice(1),) * upstream.ndim])).astype(x.dtype)


@functools.cache
def recomputed(function):
    """`function`, whose backward pass keeps its argument alone and starts with the forward pass.

    There are no forward-mode derivatives.

    Args:
        function: function of one float array.

    Returns:
        The function of the same result.
    """
    import jax

    @jax.custom_vjp
    def compute(x):
        return function(x)

    def backward(x, upstream):
        return jax.vjp(function, after(upstream, x))[1](upstream)

    compute.defvjp(lambda x: (function(x), x), backward)
    return compute


# What takes longer to compute than to keep, and what `keep` marks.
COSTLY = {"dot_general", "conv_general_dilated", "reduce_sum", "reduce_max", "reduce_window_sum", "random_bits"}
KEPT = "kept"


def keep(x):
    """Marks what a function of `keeping_little` keeps, such as the result of a loop.

    Args:
        x: array.

    Returns:
        The array.
    """
    from jax.ad_checkpoint import checkpoint_name

    return checkpoint_name(x, KEPT)


def keeping_little(function):
    """`function`, whose backward pass keeps no elementwise results, but computes them again, both passes `apart`.

    It keeps the arguments and, of those it needs, the results of products, convolutions, sums, maxima and draws, and
    what `keep` marks; also inside of `jax.checkpoint`, which it overrules. There are no forward-mode derivatives.

    Args:
        function: function of arrays, and trees of arrays, to such, with gradients for its arguments alone.

    Returns:
        The function of the same results.
    """
    import jax

    def keeps(primitive, *_, **options):
        return primitive.name in COSTLY or options.get("name") == KEPT

    # XLA has no regard on CPU for what `prevent_cse` adds, as `after` tells; the border of a program (`apart`) it has.
    recomputing = functools.partial(jax.vjp, jax.checkpoint(function, policy=keeps, prevent_cse=False))
    compute = jax.custom_vjp(apart(function))
    compute.defvjp(apart(_without_roundings(recomputing)), apart(lambda gradients, upstream: gradients(upstream)))
    return compute


def _without_roundings(function):
    """`function` without the `reduce_precision` by which `jax.checkpoint` rounds what is kept to its own precision.

    XLA does not see on CPU that it changes nothing, and copies what is kept: without it a training step of TransXNet-S
    takes 4.1 instead of 4.4 s, and 64 instead of 75 s to compile.

    Args:
        function: function of arrays, and trees of arrays, to such.

    Returns:
        The function of the same results.
    """
    import jax
    from jax.extend import core

    def compute(*args):
        arrays, structure = jax.tree.flatten(args)
        traced, shapes = jax.make_jaxpr(lambda *x: function(*structure.unflatten(x)), return_shape=True)(*arrays)
        results = core.jaxpr_as_fun(traced.replace(jaxpr=_without_equal(traced.jaxpr)))(*arrays)
        return jax.tree.structure(shapes).unflatten(results)

    return compute


def _without_equal(jaxpr):
    """A program without those of its own roundings that give what they are given."""
    from jax.extend import core

    given, equations = {}, []

    def replaced(variables):
        return [x if isinstance(x, core.Literal) else given.get(x, x) for x in variables]

    for equation in jaxpr.eqns:
        equation = equation.replace(invars=replaced(equation.invars))
        if _rounds_to_its_own(equation):
            given[equation.outvars[0]] = equation.invars[0]
        else:
            equations.append(equation)
    return jaxpr.replace(eqns=equations, outvars=replaced(jaxpr.outvars))


def _rounds_to_its_own(equation):
    import jax

    if equation.primitive.name != "reduce_precision":
        return False
    own = jax.numpy.finfo(equation.outvars[0].aval.dtype)
    return (equation.params["exponent_bits"], equation.params["mantissa_bits"]) == (own.nexp, own.nmant)
