"""Convolution with explicit zeros."""

import keras
from keras import ops

from keras_dualstream.ops.compiler import jax_on_cpu
from keras_dualstream.ops.jax_convolution import jax_conv2d
from keras_dualstream.ops.pytorch_kernels import pytorch_conv2d


def conv2d(x, kernel, bias, strides, zeros):
    """Convolution, `y[i, j] = Σ_uv x[i·s + u, j·s + v] · kernel[u, v] + bias`, of a map with zeros around it.

    Args:
        x: float tensor `(batch, height, width, channels)`.
        kernel: float tensor `(kernel_height, kernel_width, channels, filters)`.
        bias: float tensor `(filters,)` or `None`.
        strides: pair of int.
        zeros: int. Rows and columns of zeros on each side.

    Returns:
        Tensor `(batch, new_height, new_width, filters)`.
    """
    if keras.config.backend() == "torch":
        x, kernel = ops.convert_to_tensor(x), ops.convert_to_tensor(kernel)
        bias = bias if bias is None else ops.convert_to_tensor(bias)
        return pytorch_conv2d(x, kernel, bias, strides, ((zeros, zeros),) * 2)
    if jax_on_cpu():
        kernel = ops.convert_to_tensor(kernel)
        y = jax_conv2d(ops.convert_to_tensor(x, dtype=kernel.dtype), kernel, strides, zeros)
        return y if bias is None else y + bias
    padding = "valid"
    if tuple(strides) == (1, 1) and tuple(kernel.shape[:2]) == (2 * zeros + 1,) * 2:
        padding = "same"
    elif zeros:
        x = ops.pad(x, ((0, 0), (zeros, zeros), (zeros, zeros), (0, 0)))
    if keras.config.backend() == "tensorflow" and tuple(kernel.shape[:2]) == (1, 1) and max(strides) > 1:
        # As on PyTorch, but in float32 too: oneDNN's gradients of every s-th position are written beyond their buffers
        # (TensorFlow 2.21, CPU with AVX-512), which ends the process later.
        x, strides = x[:, :: strides[0], :: strides[1]], (1, 1)
    y = ops.conv(x, kernel, strides, padding, data_format="channels_last")
    return y if bias is None else y + bias
