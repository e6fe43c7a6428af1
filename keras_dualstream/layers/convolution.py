"""Convolution with explicit zeros."""

import keras

from keras_dualstream.layers.initializers import ConstantsOnHost
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.ops.convolution import conv2d


@keras.saving.register_keras_serializable(package="keras_dualstream")
class Conv2D(NestedCall, ConstantsOnHost, keras.layers.Conv2D):
    """`keras.layers.Conv2D` of channels-last maps on `ops.convolution.conv2d`, with the same zeros on every side.

    Args:
        filters: int. Channels of the result.
        kernel_size: int.
        strides: int. Defaults to `1`.
        zeros: int. Rows and columns of zeros on each side of the map. Defaults to `0`.
        **kwargs: other arguments of `keras.layers.Conv2D`, but for `padding`,
            `data_format`, `dilation_rate` and `groups`.

    Call arguments:
        inputs: float tensor `(batch, height, width, channels)`.

    Returns:
        Tensor `(batch, new_height, new_width, filters)` with `new_height` of
        `⌊(height + 2 · zeros - kernel_size) / strides⌋ + 1`, width alike.

    Example:

    >>> tuple(Conv2D(16, 3, strides=2, zeros=1)(keras.ops.ones((1, 7, 10, 3))).shape)
    (1, 4, 5, 16)
    """

    def __init__(self, filters, kernel_size, strides=1, zeros=0, **kwargs):
        super().__init__(filters, kernel_size, strides, data_format="channels_last", **kwargs)
        self.zeros = zeros

    def call(self, inputs):
        x = self.convolve(inputs, self.kernel, self.bias)
        return x if self.activation is None else self.activation(x)

    def convolve(self, inputs, kernel, bias):
        """The convolution with another kernel and bias than the layer's own."""
        return conv2d(inputs, kernel, bias, self.strides, self.zeros)

    def compute_output_shape(self, input_shape):
        batch, *sizes, channels = input_shape
        sizes = [None if size is None else size + 2 * self.zeros for size in sizes]
        return super().compute_output_shape((batch, *sizes, channels))

    def get_config(self):
        config = {**super().get_config(), "zeros": self.zeros}
        for name in ("padding", "data_format", "dilation_rate", "groups"):
            del config[name]
        return config
