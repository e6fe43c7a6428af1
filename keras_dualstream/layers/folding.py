"""A convolution and the batch normalisation behind it as one."""

from keras import ops

from keras_dualstream.layers.depthwise_conv import DepthwiseConv2D


def normalized(norm, convolution, x, training=None):
    """`norm(convolution(x))`; at inference as one convolution, of kernel `k · s` and bias `b · s + t`.

    `s` and `t` are the scale and shift of the normalisation. In half precision
    the product would round the kernel, so both run one after the other there.

    Args:
        norm: `BatchNormalization`.
        convolution: `Dense`, `Conv2D` or `DepthwiseConv2D` without activation.
        x: float tensor, as `convolution` takes it.
        training: bool. Whether the batch's statistics normalise. Defaults to `None`.

    Returns:
        Float tensor, as `convolution` gives it.
    """
    exact = convolution.compute_dtype in ("float32", "float64")
    if training or not exact or convolution.quantization_mode is not None:
        return norm(convolution(x), training=training)
    scale, shift = norm.scale_and_shift()
    kernel = ops.convert_to_tensor(convolution.kernel)
    # A depthwise kernel has its outputs on two axes.
    by_output = ops.reshape(scale, kernel.shape[-2:]) if isinstance(convolution, DepthwiseConv2D) else scale
    bias = shift if convolution.bias is None else ops.convert_to_tensor(convolution.bias) * scale + shift
    return convolution.convolve(x, kernel * by_output, bias)
