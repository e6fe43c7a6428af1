"""Convolution on JAX with what XLA is slow at on CPU written as it is fast at."""

import functools
import math


def jax_conv2d(x, kernel, strides, zeros):
    """Convolution whose gradients are matrix products, that of the map only with strides.

    XLA's own gradient of the kernel takes one to four times as long, that of the map
    with strides up to twice as long, and its convolution of three channels to few
    others up to ten times as long as that of four. Batch 8 on two cores (JAX 0.10.2), in milliseconds:

    | gradient of the kernel | as matrix products | XLA |
    |---|---|---|
    | 224 × 224 × 3, 3×3, stride 2, 24 filters | 4.1 | 10.7 |
    | 224 × 224 × 3, 4×4, stride 4, 64 filters | 2.6 | 7.4 |
    | 224 × 224 × 3, 7×7, stride 4, 48 filters | 6.8 | 14.4 |
    | 112 × 112 × 24, 3×3, stride 2, 48 filters | 7.6 | 24.0 |
    | 112 × 112 × 64, 3×3, 64 filters | 209 | 215 |
    | 56 × 56 × 64, 2×2, stride 2, 128 filters | 4.4 | 11.3 |

    | gradient of the map | as matrix products | XLA |
    |---|---|---|
    | 112 × 112 × 24, 3×3, stride 2, 48 filters | 4.9 | 8.0 |
    | 14 × 14 × 320, 3×3, stride 2, 448 filters | 4.1 | 7.2 |
    | 56 × 56 × 48, 3×3, stride 2, 96 filters | 3.2 | 4.3 |
    | 112 × 112 × 64, 3×3, 64 filters | 119 | 32 |

    | forward, 224 × 224, stride 2 | with a fourth channel | three channels |
    |---|---|---|
    | 3×3, 16 filters | 4.4 | 3.9 |
    | 3×3, 24 filters | 4.7 | 24.0 |
    | 3×3, 32 filters | 6.9 | 9.9 |
    | 7×7, 32 filters | 11.7 | 42.4 |
    | 3×3, 48 filters | 7.5 | 6.0 |

    Args:
        x: array `(batch, height, width, channels)`.
        kernel: array `(kernel_height, kernel_width, channels, filters)`.
        strides: pair of int.
        zeros: int. Rows and columns of zeros on each side.

    Returns:
        Array `(batch, new_height, new_width, filters)`.
    """
    return _with_gradients(tuple(strides), zeros)(x, kernel)


@functools.cache
def _with_gradients(strides, zeros):
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def convolve(x, kernel):
        # From 40 filters on the fourth channel costs more than it saves; with 16 it costs half a millisecond.
        if x.shape[-1] == 3 and kernel.shape[-1] < 40:
            x, kernel = _append_zeros(x, axis=3), _append_zeros(kernel, axis=2)
        return _convolve(x, kernel, strides, zeros)

    def forward(x, kernel):
        return convolve(x, kernel), (x, kernel)

    def backward(saved, upstream):
        x, kernel = saved
        exact = jnp.promote_types(x.dtype, "float32")
        _, gradients = jax.vjp(functools.partial(_convolve_by_rows, strides=strides, zeros=zeros, dtype=exact), *saved)
        for_x, for_kernel = gradients(upstream.astype(exact))
        if strides == (1, 1):
            _, gradient_of_x = jax.vjp(lambda x: _convolve(x, kernel, strides, zeros), x)
            (for_x,) = gradient_of_x(upstream)
        return for_x, for_kernel

    convolve.defvjp(forward, backward)
    return convolve


def _convolve(x, kernel, strides, zeros):
    from jax import lax

    pads = ((zeros, zeros),) * 2
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _append_zeros(x, axis):
    import jax.numpy as jnp

    return jnp.pad(x, [(0, int(i == axis)) for i in range(x.ndim)])


def _convolve_by_rows(x, kernel, strides, zeros, dtype):
    """The convolution as one matrix product for each row of the kernel."""
    import jax.numpy as jnp

    x, kernel = x.astype(dtype), kernel.astype(dtype)
    x = jnp.pad(x, ((0, 0), (zeros, zeros), (zeros, zeros), (0, 0)))
    height, width = ((n - taps) // step + 1 for n, taps, step in zip(x.shape[1:3], kernel.shape, strides, strict=False))
    total = 0
    for top, taps in enumerate(kernel):
        read = _every(x, top, strides[0], height, axis=1)
        window = jnp.concatenate([_every(read, left, strides[1], width, axis=2) for left in range(len(taps))], axis=-1)
        product = window.reshape(-1, window.shape[-1]) @ taps.reshape(-1, kernel.shape[-1])
        total += product.reshape(-1, height, width, kernel.shape[-1])
    return total


def _every(x, start, stride, count, axis):
    """`count` positions of an axis from `start` on, `stride` apart."""
    from jax import lax

    return lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis)


def jax_normalize(x, mean, variance, gamma, beta, epsilon):
    """`(x - mean) / √(variance + epsilon) · gamma + beta` by the mean and variance of `x` itself."""
    import jax.numpy as jnp

    channels = x.shape[-1]
    gamma = jnp.ones(channels, x.dtype) if gamma is None else jnp.asarray(gamma)
    beta = jnp.zeros(channels, x.dtype) if beta is None else jnp.asarray(beta)
    return _normalize(epsilon)(x, mean, variance, gamma, beta)


@functools.cache
def _normalize(epsilon):
    import jax
    import jax.numpy as jnp
    from jax import lax

    def compute(x, mean, variance, gamma, beta):
        inverse = lax.rsqrt(variance + epsilon)
        scale = inverse * gamma
        return x * scale + (beta - mean * scale), inverse

    @jax.custom_vjp
    def normalize(*tensors):
        return compute(*tensors)[0]

    def forward(x, mean, variance, gamma, beta):
        y, inverse = compute(x, mean, variance, gamma, beta)
        return y, (x, mean, inverse, gamma)

    def backward(saved, upstream):
        x, mean, inverse, gamma = saved
        axes = tuple(axis for axis in range(x.ndim) if mean.shape[axis] == 1)
        others = tuple(range(x.ndim - 1))
        x = (x - mean) * inverse
        for_beta, for_gamma = jnp.sum(upstream, others), jnp.sum(upstream * x, others)
        count = math.prod(x.shape[axis] for axis in axes)
        if axes == others:
            of_given, of_product = for_beta * gamma, for_gamma * gamma
        else:
            given = upstream * gamma
            of_given, of_product = jnp.sum(given, axes, keepdims=True), jnp.sum(given * x, axes, keepdims=True)
        for_x = inverse * (upstream * gamma - of_given / count - x * (of_product / count))
        nothing = jnp.zeros_like(mean)
        return for_x, nothing, nothing, for_gamma, for_beta

    normalize.defvjp(forward, backward)
    return normalize


def jax_attention(query, key, value, bias=None):
    """Attention of scaled queries, `softmax(q kᵀ + bias) v`, whose backward pass computes the weights anew."""
    return _attention()(query, key, value, bias)


@functools.cache
def _attention():
    import jax
    import jax.numpy as jnp
    from jax import lax

    def scores_of(query, key, bias):
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.promote_types(query.dtype, "float32"))
        return scores if bias is None else scores + bias.astype(scores.dtype)

    def compute(query, key, value, bias):
        scores = scores_of(query, key, bias)
        largest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        output = jnp.einsum("bhqk,bkhd->bqhd", (weights / total).astype(value.dtype), value)
        return output, largest + jnp.log(total)

    @jax.custom_vjp
    def attend(query, key, value, bias):
        return compute(query, key, value, bias)[0]

    def forward(query, key, value, bias):
        output, normalizer = compute(query, key, value, bias)
        return output, (query, key, value, bias, output, normalizer)

    def backward(saved, upstream):
        query, key, value, bias, output, normalizer = saved
        query = query + (0 * upstream[0, 0, 0, 0]).astype(query.dtype)
        weights = jnp.exp(scores_of(query, key, bias) - normalizer)
        exact = weights.dtype
        for_weights = jnp.einsum("bqhd,bkhd->bhqk", upstream, value, preferred_element_type=exact)
        mean = jnp.sum(upstream.astype(exact) * output.astype(exact), axis=-1)
        for_scores = weights * (for_weights - jnp.swapaxes(mean, 1, 2)[..., None])
        half = for_scores.astype(query.dtype)
        for_query = jnp.einsum("bhqk,bkhd->bqhd", half, key)
        for_key = jnp.einsum("bhqk,bqhd->bkhd", half, query)
        for_value = jnp.einsum("bhqk,bqhd->bkhd", weights.astype(upstream.dtype), upstream)
        for_bias = None if bias is None else _sum_to(for_scores, bias)
        return for_query, for_key, for_value, for_bias

    attend.defvjp(forward, backward)
    return attend


def _sum_to(x, like):
    import jax.numpy as jnp

    axes = tuple(axis for axis, size in enumerate(like.shape) if size == 1)
    return jnp.sum(x, axis=axes, keepdims=True).astype(like.dtype)
