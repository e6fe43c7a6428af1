"""Depthwise convolution that is fast under every compiler."""

import numbers

import keras

from keras_dualstream.layers.initializers import ConstantsOnHost
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.ops.depthwise import depthwise_conv2d


@keras.saving.register_keras_serializable(package="keras_dualstream")
class DepthwiseConv2D(NestedCall, ConstantsOnHost, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` on `ops.depthwise.depthwise_conv2d`, and with explicit padding and residuals.

    Same arguments, weights and results, but for `padding` and `residual`; how
    it is computed depends on the backend and its compiler, up to 30 times faster.

    Args:
        kernel_size: int or pair of int.
        strides: int or pair of int. Defaults to `(1, 1)`.
        padding: `"valid"`, `"same"`, or the zeros on every side as PyTorch has
            them: an int, a pair `(rows, columns)` or `((top, bottom), (left, right))`.
            Defaults to `"valid"`.
        *args: the other arguments of `keras.layers.DepthwiseConv2D`, in its order.
        residual: bool, by name. Whether the input is added to the result, before
            the activation. The result must have its shape. Defaults to `False`.
        **kwargs: Keras' other arguments by name.

    Call arguments:
        inputs: float tensor `(batch, height, width, channels)`, or
            `(batch, channels, height, width)` with `data_format="channels_first"`.

    Returns:
        Tensor with `channels · depth_multiplier` channels.

    Raises:
        ValueError: if an argument has none of the values above, the map is
            smaller than the kernel, or the result of `residual` has another
            shape than the input.

    Example:

    >>> y = DepthwiseConv2D(3, strides=2, padding=1, data_format="channels_last")(keras.ops.ones((1, 5, 8, 4)))
    >>> tuple(y.shape)
    (1, 3, 4, 4)
    """

    def __init__(self, kernel_size, strides=(1, 1), padding="valid", *args, residual=False, **kwargs):
        explicit = None if isinstance(padding, str) else _zeros(padding)
        super().__init__(kernel_size, strides, "valid" if explicit else padding, *args, **kwargs)
        self.padding = explicit or self.padding
        self.residual = residual
        if not isinstance(residual, bool):
            raise ValueError(f"`residual` must be a bool. Received: residual={residual!r}")
        if residual and not self._keeps_shapes():
            raise ValueError(
                "With `residual` the result must have the shape of the input: strides and `depth_multiplier` of 1, and "
                "`padding` 'same' or as many zeros as the kernel reaches. "
                f"Received: kernel_size={kernel_size!r}, strides={strides!r}, padding={padding!r}, "
                f"depth_multiplier={self.depth_multiplier}"
            )

    def _keeps_shapes(self):
        """Whether results have the shapes of inputs, whatever their sizes."""
        reaches = [(taps - 1) * rate for taps, rate in zip(self.kernel_size, self.dilation_rate, strict=True)]
        if isinstance(self.padding, str):
            zeros = reaches if self.padding == "same" else [0, 0]
        else:
            zeros = [sum(sides) for sides in self.padding]
        return tuple(self.strides) == (1, 1) and self.depth_multiplier == 1 and zeros == reaches

    def call(self, inputs):
        outputs = self.convolve(inputs, self.kernel, self.bias)
        return outputs if self.activation is None else self.activation(outputs)

    def convolve(self, inputs, kernel, bias):
        """The convolution with another kernel and bias than the layer's own."""
        return depthwise_conv2d(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
            bias=bias,
            residual=self.residual,
        )

    def compute_output_shape(self, input_shape):
        if isinstance(self.padding, str):
            return super().compute_output_shape(input_shape)
        shape = list(input_shape)
        channels, first = (3, 1) if self.data_format == "channels_last" else (1, 2)
        shape[channels] *= self.depth_multiplier
        for i, zeros in enumerate(self.padding):
            if shape[first + i] is not None:
                reach = (self.kernel_size[i] - 1) * self.dilation_rate[i]
                shape[first + i] = (shape[first + i] + sum(zeros) - reach - 1) // self.strides[i] + 1
                if shape[first + i] < 1:
                    raise ValueError(
                        f"The map with its zeros must not be smaller than the kernel {self.kernel_size}. "
                        f"Received: input shape {tuple(input_shape)}"
                    )
        return tuple(shape)

    def get_config(self):
        return {**super().get_config(), "residual": self.residual}


def _zeros(padding):
    """`((top, bottom), (left, right))` from an int, a pair of int, or itself."""
    pair = padding if isinstance(padding, (tuple, list)) else (padding, padding)
    zeros = [(size, size) if isinstance(size, numbers.Integral) else size for size in pair]
    known = len(zeros) == 2 and all(isinstance(sides, (tuple, list)) and len(sides) == 2 for sides in zeros)
    if not known or any(not isinstance(size, numbers.Integral) or size < 0 for sides in zeros for size in sides):
        raise ValueError(
            "`padding` must be 'valid', 'same', an int, a pair of int or ((top, bottom), (left, right)), none of them "
            f"negative. Received: padding={padding!r}"
        )
    return tuple(tuple(map(int, sides)) for sides in zeros)
