"""Depthwise convolution as one shifted product per tap, for XLA."""

import functools

import keras
import numpy as np
from keras import ops

from keras_dualstream.ops.channels import join_channels
from keras_dualstream.ops.channels import split_channels
from keras_dualstream.ops.counted_loop import repeat
from keras_dualstream.ops.counted_loop import slice_at
from keras_dualstream.ops.counted_loop import slice_update_at
from keras_dualstream.ops.float64 import exact_dtype
from keras_dualstream.ops.jax_program import apart
from keras_dualstream.ops.jax_recomputation import keep

# Taps up to which JAX sums the gradient of the kernel for all of them at once, row by row of the map (two cores, 3×3:
# 3.1 ms instead of 4.2 for 8 × 56 × 56 × 48, 12.5 instead of 27 for 8 × 28 × 28 × 1024). With 49 a training step of
# TransXNet-T would take 7% less, but 93 s instead of 59 to compile.
FEW_TAPS = 9


def shifted_products(x, taps, strides, zeros, dilation_rate, bias=None, residual=False):
    """`y[b, i, j, c] = Σ_uv padded[b, i·s + u·d, j·s + v·d, c] · taps[u, v, c] + bias[c]`, or `taps[u, v, b, c]`.

    The gradients are written out too: XLA's own for 49 overlapping slices takes
    four times as long, to run and to compile, as the one loop over the taps that
    sums for the kernel. They start from `x`, and put the zeros around it anew: with the
    padded maps kept, XLA's buffer of TransXNet-T's training step on JAX was 1,614 MB
    instead of 1,367. Products are summed in float32 at least.

    Args:
        x: float tensor `(batch, height, width, channels)`.
        taps: float tensor `(kernel_height, kernel_width, channels)`, or with a kernel for each
            sample `(kernel_height, kernel_width, batch, channels)`.
        strides: pair of int.
        zeros: `((top, bottom), (left, right))`, the zeros around `x`.
        dilation_rate: pair of int.
        bias: float tensor `(channels,)`. Defaults to `None`.
        residual: bool, on JAX alone. Whether to add `x`, which then has the shape of the result.
            Defaults to `False`.

    Returns:
        Tensor `(batch, new_height, new_width, channels)`.
    """
    geometry = tuple(strides), tuple(zeros), tuple(dilation_rate)
    if keras.config.backend() == "jax":
        return _on_jax((geometry,), residual)(x, (taps,), (bias,))
    y = _with_gradients(*geometry)(x, taps)
    return y if bias is None else y + bias


def shifted_products_of_parts(x, taps, zeros, biases):
    """`shifted_products` of consecutive parts of the channels, and the input added to them, on JAX.

    As one program: XLA has whole maps to write for it instead of each part's by a kernel of its own, which computes
    what stands before it again. With it and with residuals inside of programs it compiles TransXNet-T's training step
    in 0.86 to 0.92 of the CPU time; its buffer is 641 instead of 608 MB.

    Args:
        x: float array `(batch, height, width, channels)`.
        taps: sequence of float arrays `(kernel_height, kernel_width, channels of the part)`.
        zeros: sequence of `((top, bottom), (left, right))`, which leave each part its size.
        biases: sequence of float arrays `(channels of the part,)` or `None`.

    Returns:
        Array of the shape of `x`.
    """
    geometries = tuple(((1, 1), of_part, (1, 1)) for of_part in zeros)
    return _on_jax(geometries, True)(x, tuple(taps), tuple(biases))


@functools.cache
def _on_jax(geometries, residual):
    """Forward and backward pass of all parts as two programs of their own: traced once per shape."""
    import jax

    def forward(x, taps, biases):
        parts = zip(_parts(x, taps), taps, biases, geometries, strict=True)
        return [_forward(*of_part, residual) for of_part in parts]

    def backward(upstream, x, taps, biases):
        parts = zip(_parts(upstream, taps), _parts(x, taps), taps, biases, geometries, strict=True)
        for_x, for_taps, for_biases = zip(*[_gradients(*of_part, residual) for of_part in parts], strict=True)
        return join_channels(for_x), for_taps, for_biases

    forward, backward = apart(forward), apart(backward)
    # Parts are joined outside of the program, where XLA lets them be read in their places.
    compute = jax.custom_vjp(lambda *tensors: join_channels(forward(*tensors)))
    compute.defvjp(
        lambda *tensors: (join_channels([keep(y) for y in forward(*tensors)]), tensors),
        lambda tensors, upstream: backward(upstream, *tensors),
    )
    return compute


def _parts(x, taps):
    """The parts of the channels that each have taps."""
    return split_channels(x, [of_part.shape[-1] for of_part in taps])


def _with_gradients(*geometry):
    @ops.custom_gradient
    def convolve(x, taps):
        def gradients(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            return _gradients(upstream, x, taps, None, geometry, residual=False)[:2]

        return _forward(x, taps, None, geometry, residual=False), gradients

    return convolve


def _forward(x, taps, bias, geometry, residual):
    strides, zeros, dilation_rate = geometry
    y = _sum_of_taps(_padded(x, zeros), _exactly(taps), strides, dilation_rate)
    y = y if bias is None else y + _exactly(bias)
    return ops.cast(_exactly(x) + y if residual else y, x.dtype)


def _gradients(upstream, x, taps, bias, geometry, residual):
    strides, zeros, dilation_rate = geometry
    upstream = _exactly(upstream)
    for_x = _gradient_of_x(upstream, _exactly(taps), ops.shape(x), strides, zeros, dilation_rate)
    for_x = upstream + for_x if residual else for_x
    of_taps = _gradient_of_taps_on_jax if keras.config.backend() == "jax" else _gradient_of_taps
    for_taps = of_taps(upstream, _padded(x, zeros), taps.shape, strides, dilation_rate)
    for_bias = None if bias is None else ops.cast(ops.sum(upstream, axis=(0, 1, 2)), bias.dtype)
    return ops.cast(for_x, x.dtype), ops.cast(for_taps, taps.dtype), for_bias


def _padded(x, zeros):
    return ops.pad(_exactly(x), ((0, 0), *zeros, (0, 0)))


def _exactly(x):
    return ops.cast(x, exact_dtype(x.dtype))


def _sum_of_taps(padded, kernel, strides, dilation_rate, turned=False):
    """The sum of what each tap reads times its weights; with `turned` of the kernel turned around."""
    weights = _per_tap(kernel)
    weights = weights[::-1] if turned else weights
    extents = _extents(padded, kernel.shape, strides, dilation_rate)
    corners = _corners(kernel.shape, dilation_rate)
    if keras.config.backend() == "jax":
        return _sum_of_taps_on_jax(padded, weights, extents, strides, corners)
    # With Python's slices of kernels, and of maps read without strides, TransXNet-T was 20,000 more operations: XLA
    # compiles its prediction in 39 instead of 60 s, and the process has 2.9 instead of 4.1 GB by then, as TensorFlow
    # keeps where in Python each one was made.
    shape = ops.convert_to_tensor((ops.shape(padded)[0], *extents, padded.shape[-1]), dtype="int32")
    total = None
    for of_tap, (top, left) in zip(weights, corners, strict=True):
        if strides == (1, 1):
            window = ops.slice(padded, (0, top, left, 0), shape)
        else:
            window = padded[:, top : top + extents[0] : strides[0], left : left + extents[1] : strides[1]]
        product = window * of_tap
        total = product if total is None else total + product
    return total


def _per_tap(kernel):
    """The weights of each tap, row by row, on JAX `(channels,)` or `(batch, channels)`."""
    if keras.config.backend() != "jax":
        kernel = kernel if _is_shared(kernel) else kernel[:, :, :, None, None]
        return [of_tap for row in ops.unstack(kernel) for of_tap in ops.unstack(row)]
    height, width, *samples, channels = kernel.shape
    # Parts of one row are slices and no more; taps with axes of size one would each be a reshape too.
    rows = ops.reshape(kernel, (-1, channels) if samples else (-1,))
    return ops.split(rows, height * width)


def _is_shared(kernel):
    """Whether one kernel is for all samples."""
    return len(kernel.shape) == 3


def _corners(kernel_shape, dilation_rate):
    """Where the first output of each tap reads."""
    return [(u * dilation_rate[0], v * dilation_rate[1]) for u, v in np.ndindex(*kernel_shape[:2])]


def _sum_of_taps_on_jax(padded, weights, extents, strides, corners):
    """`_sum_of_taps` by JAX' own operations.

    To trace 49 taps takes 7 instead of 19 to 24 ms, and they are a quarter fewer operations for XLA.
    """
    import jax.numpy as jnp
    from jax import lax

    dtype = jnp.result_type(padded, weights[0])
    padded = padded.astype(dtype)
    batch, _, _, channels = padded.shape
    axes = (3,) if weights[0].ndim == 1 else (0, 3)
    total = None
    for of_tap, (top, left) in zip(weights, corners, strict=True):
        last = (batch, top + extents[0], left + extents[1], channels)
        window = lax.slice(padded, (0, top, left, 0), last, (1, *strides, 1))
        product = lax.mul(window, lax.broadcast_in_dim(of_tap.astype(dtype), window.shape, axes))
        total = product if total is None else lax.add(total, product)
    return total


def _extents(padded, kernel_size, strides, dilation_rate):
    """How far each tap reads along rows and columns, from its first position to its last."""
    reaches = _reaches(kernel_size, dilation_rate)
    sizes = ops.shape(padded)[1:3]
    return [
        (size - reach - 1) // stride * stride + 1 for size, reach, stride in zip(sizes, reaches, strides, strict=True)
    ]


def _reaches(kernel_size, dilation_rate):
    return [(taps - 1) * rate for taps, rate in zip(kernel_size[:2], dilation_rate, strict=True)]


def _gradient_of_x(upstream, kernel, x_shape, strides, zeros, dilation_rate):
    """The convolution of the upstream gradient, spread out by the strides, with the kernel turned around."""
    spread = _spread(upstream, strides)
    reaches = _reaches(kernel.shape, dilation_rate)
    pads, kept = [], []
    for size, given, (before, _), reach in zip(x_shape[1:3], ops.shape(spread)[1:3], zeros, reaches, strict=True):
        first = _at_least_zero(reach - before)
        # With more zeros than the kernel reaches, the outermost outputs read nothing else and are cut off.
        start = _at_least_zero(before - reach)
        pads.append((first, _at_least_zero(start + size + reach - first - given)))
        kept.append(slice(start, start + size + reach))
    padded = ops.pad(spread, ((0, 0), *pads, (0, 0)))
    return _sum_of_taps(padded[:, kept[0], kept[1]], kernel, (1, 1), dilation_rate, turned=True)


def _at_least_zero(size):
    return max(size, 0) if isinstance(size, int) else ops.maximum(size, 0)


def _spread(x, strides):
    """`x` with `stride - 1` zeros between its rows and between its columns."""
    if strides == (1, 1):
        return x
    batch, height, width, channels = ops.shape(x)
    x = ops.reshape(x, (batch, height, 1, width, 1, channels))
    x = ops.pad(x, ((0, 0), (0, 0), (0, strides[0] - 1), (0, 0), (0, strides[1] - 1), (0, 0)))
    x = ops.reshape(x, (batch, height * strides[0], width * strides[1], channels))
    return x[:, : (height - 1) * strides[0] + 1, : (width - 1) * strides[1] + 1]


def _gradient_of_taps(upstream, padded, taps_shape, strides, dilation_rate, loop=repeat):
    """For each tap the product of the upstream gradient and what the tap read, summed; one tap after the other."""
    kernel_height, kernel_width, *samples, channels = taps_shape
    if (kernel_height, kernel_width) == strides == (1, 1) and not samples:
        return ops.reshape(_sum_of_samples(padded * upstream), taps_shape)
    if keras.config.backend() == "jax" and kernel_height * kernel_width <= FEW_TAPS:
        return _gradient_of_few_taps(upstream, padded, taps_shape, strides, dilation_rate, loop)
    extents = _extents(padded, taps_shape, strides, dilation_rate)
    window_shape = (ops.shape(padded)[0], *extents, channels)

    def add(tap, total):
        top, left = tap // kernel_width * dilation_rate[0], tap % kernel_width * dilation_rate[1]
        window = slice_at(padded, (0, top, left, 0), window_shape)[:, :: strides[0], :: strides[1]]
        product = window * upstream
        summed = ops.sum(product, axis=(1, 2)) if samples else _sum_of_samples(product)
        return slice_update_at(total, (tap, *(0 for _ in of_tap)), summed[None])

    of_tap = (*ops.shape(padded)[: len(samples)], channels)
    count = kernel_height * kernel_width
    total = loop(count, add, ops.zeros((count, *of_tap), dtype=padded.dtype))
    return ops.reshape(total, (kernel_height, kernel_width, *of_tap))


def _gradient_of_taps_on_jax(upstream, padded, taps_shape, strides, dilation_rate):
    """`_gradient_of_taps` with derivatives of its own on JAX, where the loops that it counts with lack some."""
    return _differentiable(tuple(taps_shape), tuple(strides), tuple(dilation_rate))(upstream, padded)


@functools.cache
def _differentiable(taps_shape, strides, dilation_rate):
    import jax

    def sums(upstream, padded, **options):
        return _gradient_of_taps(upstream, padded, taps_shape, strides, dilation_rate, **options)

    compute = jax.custom_jvp(sums)
    # By scans, which have all derivatives.
    by_scans = functools.partial(sums, loop=functools.partial(ops.fori_loop, 0))

    @compute.defjvp
    def slope(tensors, slopes):
        # It is linear in each of the two.
        return compute(*tensors), by_scans(slopes[0], tensors[1]) + by_scans(tensors[0], slopes[1])

    return compute


def _gradient_of_few_taps(upstream, padded, taps_shape, strides, dilation_rate, loop):
    """`_gradient_of_taps` of all taps at once, one row of the map after the other.

    Each tap has its own sum over the rows, so that XLA makes one loop of all products and sums.
    """
    kernel_height, kernel_width, *samples, channels = taps_shape
    batch, rows, columns, _ = ops.shape(upstream)
    _, extent = _extents(padded, taps_shape, strides, dilation_rate)
    reach, _ = _reaches(taps_shape, dilation_rate)
    tops, lefts = (range(0, taps * rate, rate) for taps, rate in zip(taps_shape, dilation_rate, strict=False))

    def add(row, sums):
        window = slice_at(padded, (0, row * strides[0], 0, 0), (batch, reach + 1, ops.shape(padded)[2], channels))
        given = slice_at(upstream, (0, row, 0, 0), (batch, 1, columns, channels))[:, 0]
        read = [window[:, top, left : left + extent : strides[1]] for top in tops for left in lefts]
        return tuple(total + values * given for total, values in zip(sums, read, strict=True))

    zeros = ops.zeros((batch, columns, channels), dtype=padded.dtype)
    sums = loop(rows, add, (zeros,) * (kernel_height * kernel_width))
    # One sum of them all: nine are as many programs of XLA's, to be set up one by one at the first step.
    return ops.reshape(ops.sum(ops.stack(sums), axis=2 if samples else (1, 2)), taps_shape)


def _sum_of_samples(product):
    """Sum over batch, height and width."""
    if keras.config.backend() != "tensorflow":
        return ops.sum(product, axis=(0, 1, 2))
    # TensorFlow's XLA would read the whole map again for every channel, for 10 to 50 times as long. A product with one
    # row of ones it takes for that same sum.
    rows = ops.sum(product, axis=2)
    rows = ops.reshape(rows, (-1, product.shape[-1]))
    ones = ops.ones((8, ops.shape(rows)[0]), dtype=product.dtype)
    return ops.einsum("mn,nc->mc", ones, rows)[0]
