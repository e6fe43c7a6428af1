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
        return sum_of_shifts(x, kernel, strides, padding, dilation_rate)
    return ops.depthwise_conv(
        x, kernel, strides=strides, padding=padding, dilation_rate=dilation_rate, data_format=data_format
    )


def sum_of_shifts(x, kernel, strides, padding, dilation_rate):
    """Depthwise convolution as one shifted product per tap, for channels-last maps and multiplier 1.

    Args:
        x: float tensor `(batch, height, width, channels)`.
        kernel: float tensor `(kernel_height, kernel_width, channels, 1)`.
        strides: pair of int.
        padding: `"valid"` or `"same"`.
        dilation_rate: pair of int.

    Returns:
        Tensor `(batch, new_height, new_width, channels)`.
    """
    geometry = [
        _axis_geometry(x.shape[axis + 1], kernel.shape[axis], strides[axis], padding, dilation_rate[axis])
        for axis in (0, 1)
    ]
    (row_pads, row_starts, row_extent), (column_pads, column_starts, column_extent) = geometry
    padded = ops.pad(x, [(0, 0), row_pads, column_pads, (0, 0)])
    total = 0
    for u, top in enumerate(row_starts):
        for v, left in enumerate(column_starts):
            rows = slice(top, top + row_extent, strides[0])
            columns = slice(left, left + column_extent, strides[1])
            total = total + padded[:, rows, columns, :] * kernel[u, v, :, 0]
    return total


def _axis_geometry(size, taps, stride, padding, dilation):
    """Zeros before and after, where each tap starts reading, and how far it reads, along one axis."""
    reach = (taps - 1) * dilation
    pads = (0, 0)
    outputs = (size - reach - 1) // stride + 1
    if padding == "same":
        outputs = -(-size // stride)
        zeros = max((outputs - 1) * stride + reach + 1 - size, 0)
        pads = (zeros // 2, zeros - zeros // 2)
    return pads, [tap * dilation for tap in range(taps)], (outputs - 1) * stride + 1
