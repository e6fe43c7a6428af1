"""Depthwise convolution with one lowering per compiler.

XLA has no kernel for depthwise convolutions on CPU and walks through them
element by element. There the sum over the kernel's taps is written out as
shifted products (`shifted_products.py`), which XLA fuses into one loop: 10 to
30 times faster at 3×3; one tap is a product. TensorFlow's and PyTorch's own kernels win where XLA does not
compile, as long as they add the zeros around the map themselves, and on a GPU cuDNN's
do. benchmarks/depthwise.md has the measurements, per shape and batch size.
"""

import keras
from keras import ops

from keras_dualstream.ops.compiler import compiled_by_xla
from keras_dualstream.ops.compiler import exporting_to_litert
from keras_dualstream.ops.compiler import jax_on_cpu
from keras_dualstream.ops.compiler import tensorflow_on_cpu
from keras_dualstream.ops.compiler import xla_on_cpu
from keras_dualstream.ops.float64 import exact_dtype
from keras_dualstream.ops.half_precision import for_sums
from keras_dualstream.ops.pytorch_kernels import pytorch_conv2d
from keras_dualstream.ops.shifted_products import shifted_products
from keras_dualstream.ops.shifted_products import shifted_products_of_parts


def depthwise_conv2d(
    x,
    kernel,
    strides=(1, 1),
    padding="valid",
    dilation_rate=(1, 1),
    data_format="channels_last",
    bias=None,
    residual=False,
):
    """Depthwise convolution, `y[i, j, c] = Σ_uv x[i + u, j + v, c] · kernel[u, v, c] + bias[c]`.

    Args:
        x: float tensor `(batch, height, width, channels)`, or
            `(batch, channels, height, width)` with `data_format="channels_first"`.
        kernel: float tensor `(kernel_height, kernel_width, channels, multiplier)`.
        strides: pair of int. Defaults to `(1, 1)`.
        padding: `"valid"`, `"same"`, or the zeros `((top, bottom), (left, right))`.
            Defaults to `"valid"`.
        dilation_rate: pair of int. Defaults to `(1, 1)`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `"channels_last"`.
        bias: float tensor `(channels · multiplier,)`. Defaults to `None`.
        residual: bool. Whether to add `x`, which must have the shape of the result, `x[i, j, c] + y[i, j, c]`.
            Defaults to `False`.

    Returns:
        Tensor with `channels · multiplier` channels.

    Raises:
        ValueError: if `padding` is another string.
    """
    _check_padding(padding)
    if residual and not _adds_inside(kernel.shape, data_format):
        return x + depthwise_conv2d(x, kernel, strides, padding, dilation_rate, data_format, bias)
    if keras.config.backend() == "torch":
        return _by_pytorch(x, kernel, strides, padding, dilation_rate, data_format, bias)
    # On a CPU TensorFlow's XLA would take long to sum the gradient of the kernel: `shifted_products` knows how.
    if compiled_by_xla() and not tensorflow_on_cpu() and _is_one_product(kernel.shape, strides, padding):
        return _by_product(x, kernel, data_format, bias)
    # TensorFlow's kernel has one stride for both axes.
    if xla_on_cpu() or (keras.config.backend() == "tensorflow" and strides[0] != strides[1]):
        return _by_shifts(x, kernel, strides, padding, dilation_rate, data_format, bias, residual)
    y = _by_kernel(x, kernel, strides, padding, dilation_rate, data_format)
    return y if bias is None else y + _per_channel(bias, data_format)


def _adds_inside(kernel_shape, data_format):
    """Whether the input is added in the program of the convolution: on JAX' CPU, where there is one.

    Outside of it XLA computes the upstream gradient again to add it; `shifted_products_of_parts` has what both gain.
    """
    return jax_on_cpu() and data_format == "channels_last" and tuple(kernel_shape[:2]) != (1, 1)


def depthwise_conv2d_of_parts(x, kernels, biases):
    """`x` and a depthwise convolution of each part of its channels, the map keeping its size: `[x_k + DW_k(x_k)]`.

    Only where `convolves_parts_at_once(x)` holds.

    Args:
        x: float tensor `(batch, height, width, channels)`.
        kernels: sequence of float tensors `(kernel_height, kernel_width, channels of the part, 1)`.
        biases: sequence of float tensors `(channels of the part,)`.

    Returns:
        Tensor of the shape of `x`.
    """
    kernels = [ops.convert_to_tensor(kernel) for kernel in kernels]
    zeros = [_zeros(ops.shape(x)[1:3], kernel.shape, (1, 1), "same", (1, 1)) for kernel in kernels]
    taps = [ops.reshape(kernel, kernel.shape[:3]) for kernel in kernels]
    return shifted_products_of_parts(x, taps, zeros, [ops.convert_to_tensor(bias) for bias in biases])


def convolves_parts_at_once(x):
    """Whether `depthwise_conv2d_of_parts` takes `x`: on JAX' CPU."""
    return jax_on_cpu() and ops.is_tensor(x)


def _per_channel(weights, data_format):
    return ops.reshape(weights, (1, 1, 1, -1) if data_format == "channels_last" else (1, -1, 1, 1))


def _by_pytorch(x, kernel, strides, padding, dilation_rate, data_format, bias):
    x, kernel = ops.convert_to_tensor(x), ops.convert_to_tensor(kernel)
    bias = bias if bias is None else ops.convert_to_tensor(bias)
    height, width, channels, multiplier = kernel.shape
    sizes = x.shape[1:3] if data_format == "channels_last" else x.shape[2:]
    zeros = _zeros(sizes, kernel.shape, strides, padding, dilation_rate)
    kernel = kernel.reshape(height, width, 1, channels * multiplier)
    return pytorch_conv2d(x, kernel, bias, strides, zeros, dilation_rate, channels, data_format)


def _by_kernel(x, kernel, strides, padding, dilation_rate, data_format):
    """`depthwise_conv2d` by the kernels of TensorFlow and, on a GPU, cuDNN, without the bias."""
    if not isinstance(padding, str) and _means_same(padding, kernel.shape, strides, dilation_rate):
        padding = "same"
    if not isinstance(padding, str):
        pads = [(0, 0), *padding, (0, 0)] if data_format == "channels_last" else [(0, 0), (0, 0), *padding]
        x, padding = ops.pad(x, pads), "valid"
    exact = for_sums(x)
    y = ops.depthwise_conv(
        exact,
        ops.cast(kernel, exact.dtype),
        strides=strides,
        padding=padding,
        dilation_rate=dilation_rate,
        data_format=data_format,
    )
    return ops.cast(y, x.dtype)


def dynamic_depthwise_conv2d(x, kernel, strides=(1, 1), padding="same"):
    """Depthwise convolution with one kernel per sample.

    `y[b, i, j, c] = Σ_uv x[b, i + u, j + v, c] · kernel[b, u, v, c]`

    Args:
        x: float tensor `(batch, height, width, channels)`.
        kernel: float tensor `(batch, kernel_height, kernel_width, channels)`.
        strides: pair of int. Defaults to `(1, 1)`.
        padding: `"valid"`, `"same"`, or the zeros `((top, bottom), (left, right))`.
            Defaults to `"same"`.

    Returns:
        Tensor `(batch, new_height, new_width, channels)`.

    Raises:
        ValueError: if `padding` is another string.
    """
    _check_padding(padding)
    # LiteRT's depthwise convolution must know the number of channels, and with it the batch.
    unknown_batch = not isinstance(ops.shape(x)[0], int)
    if xla_on_cpu() or (unknown_batch and exporting_to_litert()):
        taps = ops.transpose(kernel, (1, 2, 0, 3))
        zeros = _zeros(ops.shape(x)[1:3], kernel.shape[1:3], strides, padding, (1, 1))
        return shifted_products(x, taps, strides, zeros, (1, 1))
    # On small maps PyTorch's gradient takes 3 to 8 times as long channels last where the channels of all samples are
    # over 512, and up to half as long where they are fewer.
    if keras.config.backend() == "torch" and x.shape[1] * x.shape[2] < 400 and x.shape[0] * x.shape[3] > 512:
        return _batch_in_first_channels(x, kernel, strides, padding)
    return _batch_in_channels(x, kernel, strides, padding)


def _check_padding(padding):
    if isinstance(padding, str) and padding not in ("valid", "same"):
        raise ValueError(f"`padding` must be 'valid', 'same' or the zeros of each side. Received: padding={padding!r}")


def _by_shifts(x, kernel, strides, padding, dilation_rate, data_format, bias, residual):
    """`depthwise_conv2d` by shifted products: channels last, and each channel as often as it has kernels."""
    if data_format == "channels_first":
        x = ops.transpose(x, (0, 2, 3, 1))
    height, width, channels, multiplier = kernel.shape
    if multiplier > 1:
        x = ops.repeat(x, multiplier, axis=-1)
    taps = ops.reshape(kernel, (height, width, channels * multiplier))
    zeros = _zeros(ops.shape(x)[1:3], kernel.shape, strides, padding, dilation_rate)
    bias = bias if bias is None else ops.convert_to_tensor(bias)
    y = shifted_products(x, taps, strides, zeros, dilation_rate, bias, residual)
    return ops.transpose(y, (0, 3, 1, 2)) if data_format == "channels_first" else y


def _by_product(x, kernel, data_format, bias):
    """`depthwise_conv2d` with one tap, whose gradients are summed in float32 at least."""
    exact = exact_dtype(x.dtype)
    y = ops.cast(x, exact) * _per_channel(ops.cast(kernel, exact), data_format)
    y = y if bias is None else y + _per_channel(ops.cast(bias, exact), data_format)
    return ops.cast(y, x.dtype)


def _batch_in_channels(x, kernel, strides, padding):
    """One kernel per sample as one depthwise convolution whose channels are those of all samples."""
    batch, height, width, channels = ops.shape(x)
    folded = ops.reshape(ops.transpose(x, (1, 2, 0, 3)), (1, height, width, batch * channels))
    taps = ops.reshape(ops.transpose(kernel, (1, 2, 0, 3)), (*kernel.shape[1:3], batch * channels, 1))
    y = depthwise_conv2d(folded, taps, strides, padding)
    y = ops.reshape(y, (*ops.shape(y)[1:3], batch, channels))
    return ops.transpose(y, (2, 0, 1, 3))


def _batch_in_first_channels(x, kernel, strides, padding):
    """`_batch_in_channels` with the channels first."""
    batch, height, width, channels = ops.shape(x)
    folded = ops.reshape(ops.transpose(x, (0, 3, 1, 2)), (1, batch * channels, height, width))
    taps = ops.reshape(ops.transpose(kernel, (1, 2, 0, 3)), (*kernel.shape[1:3], batch * channels, 1))
    y = depthwise_conv2d(folded, taps, strides, padding, data_format="channels_first")
    y = ops.reshape(y, (batch, channels, *ops.shape(y)[2:]))
    return ops.transpose(y, (0, 2, 3, 1))


def _is_one_product(kernel_shape, strides, padding):
    """Whether every output is one input times one weight, as in TransXNet's feed-forward network and attention.

    XLA fuses a product. A convolution on a GPU goes to cuDNN, and to try cuDNN's kernels takes 5 to 25 seconds of
    compiling for each shape (H100, four shapes at a time). On a CPU it would be a program of its own, whose gradient is
    a loop: as products TransXNet-S' two in each block are a twentieth fewer operations of its training step for JAX,
    and 0.1 GB less; TransXNet-T predicts in the same time.
    """
    no_zeros = isinstance(padding, str) or not any(map(any, padding))
    return tuple(kernel_shape[:2]) == (1, 1) and kernel_shape[3] == 1 and tuple(strides) == (1, 1) and no_zeros


def _means_same(padding, kernel_size, strides, dilation_rate):
    """Whether these zeros are those that `"same"` adds, whatever the size of the map."""
    same = [_same_zeros(None, taps, 1, dilation) for taps, dilation in zip(kernel_size, dilation_rate, strict=False)]
    return tuple(strides) == (1, 1) and [tuple(sides) for sides in padding] == same


def _zeros(sizes, kernel_size, strides, padding, dilation_rate):
    """The zeros `((top, bottom), (left, right))` that `padding` means."""
    if not isinstance(padding, str):
        return tuple(tuple(sides) for sides in padding)
    if padding == "valid":
        return ((0, 0), (0, 0))
    return tuple(
        _same_zeros(size, taps, stride, dilation)
        for size, taps, stride, dilation in zip(sizes, kernel_size, strides, dilation_rate, strict=False)
    )


def _same_zeros(size, taps, stride, dilation):
    """Zeros before and after one axis that give `⌈size / stride⌉` outputs, the odd one behind."""
    reach = (taps - 1) * dilation
    if stride == 1:
        return reach // 2, reach - reach // 2
    zeros = (-(-size // stride) - 1) * stride + reach + 1 - size
    zeros = max(zeros, 0) if isinstance(zeros, int) else ops.maximum(zeros, 0)
    return zeros // 2, zeros - zeros // 2
