"""Convolution on JAX with what XLA is slow at on CPU written as it is fast at."""

import functools
import math

# Elements of the windows of one row of a kernel up to which all samples go at once: with 9.6 million
# (8 × 112 × 112 × 32, 3×3) the kernel's gradient takes 62 ms, sample by sample 25; with 1.8 million 7.0 and 5.8.
WINDOWS_AT_ONCE = 2**22


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
    | 112 × 112 × 32, 3×3, 32 filters | 25 | 54 |
    | 112 × 112 × 64, 3×3, 64 filters | 152 | 302 |
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
        by_rows = functools.partial(_convolve_by_rows, strides=strides, zeros=zeros)
        exactly = [each.astype(exact) for each in (x, kernel, upstream)]
        if strides == (1, 1):
            _, gradient_of_x = jax.vjp(lambda x: _convolve(x, kernel, strides, zeros), x)
            (for_x,) = gradient_of_x(upstream)
            for_kernel = _gradient_of_kernel(by_rows, *exactly)
        else:
            for_x, for_kernel = jax.vjp(by_rows, *exactly[:2])[1](exactly[2])
        return for_x.astype(x.dtype), for_kernel.astype(kernel.dtype)

    convolve.defvjp(forward, backward)
    return convolve


def _convolve(x, kernel, strides, zeros):
    from jax import lax

    pads = ((zeros, zeros),) * 2
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _append_zeros(x, axis):
    import jax.numpy as jnp

    return jnp.pad(x, [(0, int(i == axis)) for i in range(x.ndim)])


def _gradient_of_kernel(convolve, x, kernel, upstream):
    """The gradient of the kernel; sample by sample where the windows would not stay in the cache."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    def of_samples(x, upstream):
        return jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](upstream)[0]

    def add(total, sample):
        x, upstream = sample
        return total + of_samples(x[None], upstream[None]), None

    windows = (*upstream.shape[:3], *kernel.shape[1:3])
    if not all(isinstance(size, int) for size in windows) or math.prod(windows) <= WINDOWS_AT_ONCE:
        return of_samples(x, upstream)
    return lax.scan(add, jnp.zeros_like(kernel), (x, upstream))[0]


def _convolve_by_rows(x, kernel, strides, zeros):
    """The convolution as one matrix product for each row of the kernel."""
    import jax.numpy as jnp

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
    """`(x - mean) / √(variance + epsilon) · gamma + beta` by the mean and variance of `x` itself.

    Its backward pass keeps `x` and the statistics, where XLA's keeps two or three arrays of its size. With it and
    `jax_attention` the sums of gradients in Dual-ViT-S's training step take 173 instead of 710 ms of both threads.

    Args:
        x: float32 or float64 array `(..., channels)`.
        mean: array like `x`, of size 1 along the axes over which it was taken. Its gradient is in that of `x`.
        variance: array of the shape of `mean`, as the mean.
        gamma: array `(channels,)` or `None`.
        beta: array `(channels,)` or `None`.
        epsilon: float.

    Returns:
        Array of the shape of `x`.
    """
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
        if mean.shape[-1] == 1:
            return (x - mean) * inverse * gamma + beta, inverse
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


def jax_attention(query, key, value, bias):
    """Attention of scaled queries, `softmax(q kᵀ + bias) v`, whose backward pass computes the weights anew.

    Heads are copied in front of the tokens, and the keys behind their channels: XLA's products over
    other layouts take up to twice as long. On two cores (JAX 0.10.2), in milliseconds:

    | batch 8, heads of 32 channels | here | with gradients | `jax.nn` | with gradients |
    |---|---|---|---|---|
    | 10 heads, 260 queries and keys | 17.3 | 56 | 25.9 | 82 |
    | 2 heads, 3136 queries, 64 keys | 9.6 | 31 | 16.9 | 90 |
    | 2 heads, 64 queries, 3136 keys | 8.6 | 39 | 18.9 | 120 |
    | 4 heads, 784 queries, 64 keys | 1.8 | 9.8 | 3.6 | 16.6 |

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
        weights, _ = exponentials(_after(upstream, query), key, bias, largest)
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

    shape = (1,) * (x.ndim - len(shape)) + tuple(shape), shape
    axes = tuple(axis for axis, size in enumerate(shape[0]) if size == 1)
    return jnp.sum(x, axis=axes, keepdims=True).reshape(shape[1])


def jax_gelu(x):
    """`x · (1 + erf(x / √2)) / 2`, not for half precision, where the sum cancels.

    `jax.nn.gelu` takes erfc, and twice as long: 3.3 ms instead of 1.7 for 8 × 28 × 28 × 512 on two cores, with
    gradients 3.9 instead of 1.8. Its backward pass keeps three intermediate results besides the array; here it keeps
    none. TensorFlow lacks what erf becomes.
    """
    return _activation("gelu")(x)


def jax_silu(x):
    """`x · (1 + tanh(x / 2)) / 2`, not for half precision, where the sum cancels.

    `jax.nn.silu` divides, and takes 2.0 ms instead of 1.7 for 8 × 112 × 112 × 24 on two cores. Its backward pass keeps
    two intermediate results besides the array; here it keeps none.
    """
    return _activation("silu")(x)


@functools.cache
def _activation(name):
    import jax
    import jax.numpy as jnp
    from jax import lax

    def gelu(x):
        return 0.5 * x * (1.0 + lax.erf(x * math.sqrt(0.5)))

    def silu(x):
        return x * (0.5 + 0.5 * jnp.tanh(0.5 * x))

    function = {"gelu": gelu, "silu": silu}[name]

    @jax.custom_vjp
    def activate(x):
        return function(x)

    def backward(x, upstream):
        return jax.vjp(function, x + 0 * upstream)[1](upstream)

    activate.defvjp(lambda x: (activate(x), x), backward)
    return activate


def _after(upstream, x):
    """`x`, but not before the upstream gradient is there.

    XLA would find what is computed from `x` computed before, and keep it: on CPU it has no regard for
    `jax.lax.optimization_barrier`.
    """
    return x + 0 * upstream[(0,) * upstream.ndim]
