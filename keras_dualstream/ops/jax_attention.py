"""Attention on JAX that keeps no weights for its backward pass, and has no forward-mode derivatives."""

import functools

from keras_dualstream.ops.jax_recomputation import after


def jax_attention(query, key, value, bias):
    """Attention of scaled queries, `softmax(q kᵀ + bias) v`, whose backward pass computes the weights anew.

    Heads are copied in front of the tokens, and the keys behind their channels: XLA's products over
    other layouts take up to twice as long. On two cores (JAX 0.10.2), in milliseconds:

    | batch 8, heads of 32 channels | here | with gradients | `jax.nn` | with gradients |
    |---|---|---|---|---|
    | 10 heads, 260 queries and keys | 26.6 | 54 | 27.7 | 79 |
    | 2 heads, 3136 queries, 64 keys | 5.5 | 38 | 8.1 | 45 |
    | 2 heads, 64 queries, 3136 keys | 6.9 | 38 | 8.4 | 79 |
    | 4 heads, 784 queries, 64 keys | 1.8 | 10.8 | 3.5 | 14.0 |

    Args:
        query: float32 or float64 array `(batch, queries, heads, channels)`.
        key: array `(batch, keys, heads, channels)`.
        value: array `(batch, keys, heads, channels)`.
        bias: array that broadcasts to `(batch, heads, queries, keys)`, or `None`.

    Returns:
        Array `(batch, queries, heads, channels)`.
    """
    query, key, value = query.transpose(0, 2, 1, 3), key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)
    return _attention()(query, key, value, bias).transpose(0, 2, 1, 3)


@functools.cache
def _attention():
    import jax
    import jax.numpy as jnp

    def exponentials(query, key, bias, largest=None):
        scores = query @ key if bias is None else query @ key + bias
        largest = jnp.max(scores, axis=-1, keepdims=True) if largest is None else largest
        return jnp.exp(scores - largest), largest

    def compute(query, key, value, bias):
        weights, largest = exponentials(query, key, bias)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        return weights @ value / total, largest, total

    @jax.custom_vjp
    def attend(*tensors):
        return compute(*tensors)[0]

    def forward(*tensors):
        output, largest, total = compute(*tensors)
        return output, (*tensors, output, largest, total)

    def backward(saved, upstream):
        query, key, value, bias, output, largest, total = saved
        # The largest too: repeated along the keys, it would be kept in the size of the scores.
        weights, _ = exponentials(after(upstream, query), key, bias, after(upstream, largest))
        weights = weights * (1 / total)
        for_weights = upstream @ value.swapaxes(-1, -2)
        for_scores = weights * (for_weights - jnp.sum(upstream * output, axis=-1, keepdims=True))
        for_query, for_key = for_scores @ key.swapaxes(-1, -2), query.swapaxes(-1, -2) @ for_scores
        for_bias = None if bias is None else _sum_to(bias.shape, for_scores)
        return for_query, for_key, weights.swapaxes(-1, -2) @ upstream, for_bias

    attend.defvjp(forward, backward)
    return attend


def _sum_to(shape, x):
    """Sum over the axes along which something of a shape was repeated to that of `x`."""
    import jax.numpy as jnp

    of_every_axis = (1,) * (x.ndim - len(shape)) + tuple(shape)
    axes = tuple(axis for axis, size in enumerate(of_every_axis) if size == 1)
    return jnp.sum(x, axis=axes, keepdims=True).reshape(shape)
