"""Depthwise convolution with one lowering per compiler."""

import keras
from keras import ops


def depthwise_conv2d(x, kernel, strides=(1, 1), padding="valid", dilation_rate=(1, 1), data_format="channels_last"):
    """Depthwise convolution, `y[i, j, c] = Σ_uv x[i + u, j + v, c] · kernel[u, v, c]`.

    TensorFlow and PyTorch run their own kernels. XLA on CPU has none and walks
    through the grouped convolution element by element, so on JAX the sum over
    the kernel's taps is written out as shifted products, which XLA fuses.

    Args:
        x: float tensor `(batch, height, width, channels)`, or
            `(batch, channels, height, width)` with `data_format="channels_first"`.
        kernel: float tensor `(kernel_height, kernel_width, channels, multiplier)`.
        strides: pair of int. Defaults to `(1, 1)`.
        padding: `"valid"` or `"same"`. Defaults to `"valid"`.
        dilation_rate: pair of int. Defaults to `(1, 1)`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `"channels_last"`.

    Returns:
        Tensor with `channels · multiplier` channels.
    """
    # JAX on 2 CPU cores, 3x3 over 8x56x56x512: 295 ms as a grouped convolution,
    # 34 ms as shifts (backward 1273 and 187); on TensorFlow 8 and 43, on
    # PyTorch 79 and 254 (benchmarks/depthwise.md).
    if keras.config.backend() == "jax" and data_format == "channels_last" and kernel.shape[-1] == 1:
        return _sum_of_shifts(x, kernel, strides, padding, dilation_rate)
    return ops.depthwise_conv(
        x, kernel, strides=strides, padding=padding, dilation_rate=dilation_rate, data_format=data_format
    )


def _sum_of_shifts(x, kernel, strides, padding, dilation_rate):
    starts, extents = [], []
    pads = [(0, 0)]
    for axis in (0, 1):
        size, step = x.shape[axis + 1], strides[axis]
        reach = (kernel.shape[axis] - 1) * dilation_rate[axis]
        if padding == "same":
            outputs = -(-size // step)
            total = max((outputs - 1) * step + reach + 1 - size, 0)
            pads.append((total // 2, total - total // 2))
        else:
            outputs = (size - reach - 1) // step + 1
            pads.append((0, 0))
        starts.append([tap * dilation_rate[axis] for tap in range(kernel.shape[axis])])
        extents.append((outputs - 1) * step + 1)
    padded = ops.pad(x, [*pads, (0, 0)])
    total = 0
    for u, top in enumerate(starts[0]):
        for v, left in enumerate(starts[1]):
            window = padded[:, top : top + extents[0] : strides[0], left : left + extents[1] : strides[1], :]
            total = total + window * kernel[u, v, :, 0]
    return total
