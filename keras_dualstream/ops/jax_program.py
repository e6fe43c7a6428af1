"""Functions that XLA compiles apart from what is around them."""

import contextlib

from keras_dualstream.ops.compiler import jax_on_cpu


def apart(function):
    """`function` as a program of its own on JAX, called where it stands, alike calls being compiled once.

    XLA merges whatever it can: it computes one operation again in each of its readers, backward passes' first
    operations early, and the same layers in another way at each place, to be compiled each time. Nothing of that
    crosses the border of a program that is not inlined. With blocks and depthwise convolutions apart TransXNet-T,
    batch 8 at 224 × 224, predicts in 377 or 445 ms, process by process, instead of 450; its training step takes 57
    instead of 70 s to compile, some 5% less time to run, and 1.68 instead of 2.35 GB. benchmarks/changes.md has more.

    Args:
        function: function of arrays, and trees of arrays, to such.

    Returns:
        The function of the same results.
    """
    import jax
    from jax.experimental.xla_metadata import set_xla_metadata

    def inlining(*args):
        # What JAX itself compiles apart inside, such as `jax.numpy.pad`, is not meant.
        with set_xla_metadata(inlineable=None):
            return function(*args)

    program = jax.jit(inlining)

    def call(*args):
        # On a GPU nobody has measured it.
        with set_xla_metadata(inlineable="false") if jax_on_cpu() else contextlib.nullcontext():
            return program(*args)

    return call


def one_after_the_other(function, choices, state):
    """`function(choices[-1], … function(choices[0], state))` as one loop, of which XLA compiles one step.

    Each step copies its choice, which is why large ones do not pay. A gradient would copy what every step keeps.

    Args:
        function: function of a tree of arrays and a state to the next state of which `is_a_step` holds.
        choices: list of trees of arrays, all of the same shapes.
        state: list of arrays.

    Returns:
        The last state, a list of arrays.
    """
    import jax
    from jax import lax

    def step(state, index):
        choice = lax.switch(index, [lambda choice=choice: choice for choice in choices])
        return function(choice, state)[0], None

    return lax.scan(step, state, jax.numpy.arange(len(choices)))[0]


def is_a_step(function, choice, state):
    """Whether a function gives a next state of the same shapes and dtypes, and nothing else.

    Args:
        function: function of a tree of arrays and a state, to the next state and a tree of whatever else it gives.
        choice: tree of arrays.
        state: list of arrays.

    Returns:
        bool.
    """
    import jax

    following, others = jax.eval_shape(function, choice, state)
    shapes, before = ([(x.shape, x.dtype) for x in arrays] for arrays in (following, state))
    return shapes == before and not jax.tree.leaves(others)


def only_traced(arrays):
    """Whether JAX traces these arrays for one program, and neither a gradient nor for several samples at once.

    Args:
        arrays: tree of arrays.

    Returns:
        bool; also true inside of a program whose gradient is taken as a whole.
    """
    import jax

    # As what is computed from no input.
    traced = type(jax.numpy.zeros(()))
    return all(isinstance(x, traced) or not isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arrays))


def compiled_as_a_whole():
    """Whether JAX traces what will be compiled as one program, and not for a gradient of single operations."""
    import jax

    # Of no input, it is traced under `jax.jit` alone.
    return isinstance(jax.numpy.zeros(()), jax.core.Tracer)
