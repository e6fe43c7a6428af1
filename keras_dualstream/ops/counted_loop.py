"""Loops that count, and slices at what they have counted, without what XLA would add to either on JAX."""

import keras
from keras import ops


def repeat(count, step, state):
    """`ops.fori_loop` from 0 to `count`, on JAX without what its gradient would need.

    JAX makes a scan of a loop whose count is known, and of that a loop that calls a program in each step, which XLA
    leaves apart inside of programs that are apart.

    Args:
        count: int, not negative.
        step: function of the counter, on JAX an unsigned one, and a state to the next state.
        state: tree of tensors.

    Returns:
        The last state.
    """
    if keras.config.backend() != "jax":
        return ops.fori_loop(0, count, step, state)
    import jax.numpy as jnp
    from jax import lax

    start = jnp.uint32(0), state
    return lax.while_loop(lambda at: at[0] < count, lambda at: (at[0] + 1, step(*at)), start)[1]


def slice_at(x, start, shape):
    """`ops.slice` from numbers that are not negative: for others XLA would have three operations a number on JAX.

    Args:
        x: tensor.
        start: sequence of int or integer tensors of no axes, such as the counter of `repeat`.
        shape: sequence of int.

    Returns:
        Tensor of that shape.
    """
    if keras.config.backend() != "jax":
        return ops.slice(x, start, shape)
    from jax import lax

    return lax.dynamic_slice(x, _unsigned(start), shape)


def slice_update_at(x, start, updates):
    """`ops.slice_update` from numbers that are not negative, as `slice_at` takes them.

    Args:
        x: tensor.
        start: sequence of int or integer tensors of no axes.
        updates: tensor of as many axes as `x`.

    Returns:
        Tensor of the shape of `x`.
    """
    if keras.config.backend() != "jax":
        return ops.slice_update(x, start, updates)
    from jax import lax

    return lax.dynamic_update_slice(x, updates, _unsigned(start))


def _unsigned(numbers):
    import jax.numpy as jnp

    return [jnp.asarray(number, "uint32") for number in numbers]
