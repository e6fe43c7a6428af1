"""Depthwise convolution that is fast under every compiler."""

import keras
from keras import ops

from keras_dualstream.ops.depthwise import depthwise_conv2d


@keras.saving.register_keras_serializable(package="keras_dualstream")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` on `ops.depthwise.depthwise_conv2d`.

    Same arguments, weights and results; only the way it is computed differs:
    on JAX as a sum of shifted products, which is up to 30 times faster on CPU.

    Args:
        kernel_size: int or pair of int.
        **kwargs: the arguments of `keras.layers.DepthwiseConv2D`.

    Call arguments:
        inputs: float tensor `(batch, height, width, channels)`, or
            `(batch, channels, height, width)` with `data_format="channels_first"`.

    Returns:
        Tensor with `channels · depth_multiplier` channels.

    Example:

    >>> y = DepthwiseConv2D(3, padding="same", data_format="channels_last")(keras.ops.ones((1, 5, 7, 4)))
    >>> tuple(y.shape)
    (1, 5, 7, 4)
    """

    def call(self, inputs):
        outputs = depthwise_conv2d(
            inputs,
            self.kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        if self.use_bias:
            shape = (1, 1, 1, -1) if self.data_format == "channels_last" else (1, -1, 1, 1)
            outputs = outputs + ops.reshape(self.bias, shape)
        return outputs if self.activation is None else self.activation(outputs)
