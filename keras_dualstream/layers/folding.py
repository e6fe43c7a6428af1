"""A convolution and the batch normalisation behind it as one."""

import keras
from keras import ops

from keras_dualstream.layers.depthwise_conv import DepthwiseConv2D
from keras_dualstream.ops.compiler import watched_by_pytorch
from keras_dualstream.ops.reshape import reshape


def normalized(norm, convolution, x, training=None):
    """`norm(convolution(x))`; at inference as one convolution, of kernel `k · s` and bias `b · s + t`.

    `s` and `t` are the scale and shift of the normalisation. In half precision
    the product would round the kernel, so both run one after the other there, as
    where something else is to happen when one of them is called.

    Args:
        norm: `BatchNormalization`.
        convolution: `Dense`, `Conv2D` or `DepthwiseConv2D` without activation.
        x: float tensor, as `convolution` takes it.
        training: bool. Whether the batch's statistics normalise. Defaults to `None`.

    Returns:
        Float tensor, as `convolution` gives it.
    """
    if training or not _can_fold(norm, convolution, x):
        return norm(convolution(x), training=training)
    scale, shift = norm.scale_and_shift()
    kernel = ops.convert_to_tensor(convolution.kernel)
    # A depthwise kernel has its outputs on two axes.
    by_output = reshape(scale, kernel.shape[-2:]) if isinstance(convolution, DepthwiseConv2D) else scale
    bias = shift if convolution.bias is None else ops.convert_to_tensor(convolution.bias) * scale + shift
    return convolution.convolve(x, kernel * by_output, bias)


def _can_fold(norm, convolution, x):
    """Whether map, kernel and statistics have one exact dtype, and both layers would do nothing but compute."""
    tensors = (x, ops.convert_to_tensor(convolution.kernel))
    dtypes = {keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors}
    dtypes |= {convolution.compute_dtype, norm.compute_dtype}
    # An input that the convolution adds would not be scaled.
    plain = convolution.quantization_mode is None and not getattr(convolution, "residual", False)
    watched = watched_by_pytorch(norm) or watched_by_pytorch(convolution)
    return dtypes in ({"float32"}, {"float64"}) and plain and not watched
