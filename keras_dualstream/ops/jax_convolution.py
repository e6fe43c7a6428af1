"""Convolution on JAX with what XLA is slow at on CPU written as it is fast at: no forward-mode derivatives."""

import functools
import math

from keras_dualstream.ops.jax_recomputation import after
from keras_dualstream.ops.jax_recomputation import keep
from keras_dualstream.ops.pieces import PIECE
from keras_dualstream.ops.pieces import count_pieces
from keras_dualstream.ops.pieces import map_pieces
from keras_dualstream.ops.pieces import traced_by_jax

# Elements of the windows of one row of a kernel up to which all samples go at once. With 9.6 million
# (8 × 112 × 112 × 32, 3×3) the kernel's gradient takes 62 ms, sample by sample 25; with 1.8 million
# (8 × 56 × 56 × 24, 3×3) 7.0 and 5.8; with 0.4 million (8 × 7 × 7 × 320, 3×3) 5.1 and 7.8.
WINDOWS_AT_ONCE = 2**22


def jax_conv2d(x, kernel, strides, zeros):
    """Convolution whose strided form, but of images, and gradients, but that of the map without strides, are products.

    XLA's own gradient of the kernel takes two to three times as long, that of the map
    with strides up to twice as long, its convolution with strides up to 1.6 times as long, and that of three
    channels to few others up to ten times as long as that of four. The windows of a product are to stay in the
    cache, so some samples go after the other; where not even one sample's do, or the size is unknown, XLA's convolution
    is left. Batch 8 on two cores (JAX 0.10.2), in milliseconds:

    | with strides, forward; both gradients | in pieces | at once | XLA |
    |---|---|---|---|
    | 112 × 112 × 48, 3×3, stride 2, 96 filters | 18; 36 | 49; 80 | 27; 127 |
    | 112 × 112 × 24, 3×3, stride 2, 48 filters | 6.0; 14 | 6.8; 34 | 6.6; 31 |
    | 56 × 56 × 96, 2×2, stride 2, 96 filters | 3.9; 9.4 | 4.1; 10.0 | 6.4; 22.7 |
    | 56 × 56 × 64, 2×2, stride 2, 128 filters | 3.4; 8.8 | 3.6; 8.5 | 5.4; 16.8 |
    | 56 × 56 × 48, 3×3, stride 2, 96 filters | 4.9; 12.1 | 5.1; 10.6 | 6.5; 19.5 |
    | 28 × 28 × 96, 3×3, stride 2, 224 filters | 4.5; 10.4 | 4.4; 10.2 | 4.6; 14.5 |

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

    by_rows = functools.partial(_convolve_by_rows, strides=strides, zeros=zeros)

    @jax.custom_vjp
    def convolve(x, kernel):
        if strides != (1, 1) and x.shape[-1] > 3 and _fits_the_cache(x, kernel, strides):
            return _convolve_in_pieces(by_rows, x, kernel, _count_pieces(x, kernel, strides))
        # From 40 filters on the fourth channel costs more than it saves; with 16 it costs half a millisecond.
        if x.shape[-1] == 3 and kernel.shape[-1] < 40:
            x, kernel = _append_zeros(x, axis=3), _append_zeros(kernel, axis=2)
        return _convolve(x, kernel, strides, zeros)

    def forward(x, kernel):
        return keep(convolve(x, kernel)), (x, kernel)

    def backward(saved, upstream):
        x, kernel = saved
        x = after(upstream, x)
        if strides == (1, 1):
            _, gradient_of_x = jax.vjp(lambda x: _convolve(x, kernel, strides, zeros), x)
            (for_x,) = gradient_of_x(upstream)
            for_kernel = _gradient_of_kernel(by_rows, *map(_exactly, (x, kernel, upstream)))
        else:
            for_x, for_kernel = _gradients_in_pieces(by_rows, x, kernel, upstream, _count_pieces(x, kernel, strides))
        if x.shape[-1] > 3:
            # As in `jax_linear`; the gradient of an image is not wanted, and would be computed for this alone.
            for_kernel = after(for_x, for_kernel)
        return for_x, for_kernel.astype(kernel.dtype)

    convolve.defvjp(forward, backward)
    return convolve


def _exactly(x):
    """An array in at least float32."""
    import jax.numpy as jnp

    return x.astype(jnp.promote_types(x.dtype, "float32"))


def _convolve(x, kernel, strides, zeros):
    from jax import lax

    pads = ((zeros, zeros),) * 2
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _windows(x, kernel, strides):
    """The shape of the windows of one row of the kernel."""
    positions = (size // stride for size, stride in zip(x.shape[1:3], strides, strict=True))
    return (x.shape[0], *positions, kernel.shape[1], x.shape[3])


def _fits_the_cache(x, kernel, strides):
    """Whether the windows of one sample do, of a known size, and JAX compiles a loop over the samples."""
    windows = _windows(x, kernel, strides)
    known = all(isinstance(size, int) for size in windows)
    return known and traced_by_jax(x) and 0 < math.prod(windows[1:]) <= PIECE


def _count_pieces(x, kernel, strides):
    """How many pieces of samples share the batch."""
    return count_pieces(_windows(x, kernel, strides)) if traced_by_jax(x) else 1


def _convolve_in_pieces(convolve, x, kernel, pieces):
    return map_pieces(lambda x: (convolve(_exactly(x), _exactly(kernel)).astype(x.dtype), ()), pieces, x)[0]


def _gradients_in_pieces(convolve, x, kernel, upstream, pieces):
    import jax

    def of_samples(upstream, x):
        for_x, for_kernel = jax.vjp(convolve, _exactly(x), _exactly(kernel))[1](_exactly(upstream))
        return for_x.astype(x.dtype), for_kernel

    return map_pieces(of_samples, pieces, upstream, x)


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
