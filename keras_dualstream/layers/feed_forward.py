"""Feed-forward network of a transformer block."""

import keras

from keras_dualstream.layers.depthwise_conv import DepthwiseConv2D
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.initializers import conv_initializer
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.layers.recomputation import adds_losses
from keras_dualstream.layers.recomputation import recomputed
from keras_dualstream.layers.recomputation import recomputes
from keras_dualstream.ops.activation import gelu
from keras_dualstream.ops.pieces import in_pieces


@keras.saving.register_keras_serializable(package="keras_dualstream")
class FeedForward(NestedCall, keras.layers.Layer):
    """`Linear → (depthwise convolution) → activation → Linear`.

    With `kernel_size` it works on feature maps and mixes neighbouring pixels by
    a depthwise convolution, as in PVT v2; without, on tokens of any layout.

    Args:
        mlp_ratio: float. Hidden channels per input channel. Defaults to `4.0`.
        kernel_size: int. Size of the depthwise convolution; `None` for none.
            Defaults to `None`.
        activation: name or function. Defaults to `"gelu"` (the exact one).

    Call arguments:
        x: float tensor `(batch, ..., channels)`; with `kernel_size`,
            `(batch, height, width, channels)`.

    Returns:
        Tensor of the shape of `x`.

    Raises:
        ValueError: if there is no hidden channel.

    Example:

    >>> y = FeedForward(2.0, kernel_size=3)(keras.ops.ones((1, 5, 7, 4)))
    >>> tuple(y.shape)
    (1, 5, 7, 4)

    Reference:
        Wang et al., "PVT v2", section 3.3 (2022).
    """

    def __init__(self, mlp_ratio=4.0, kernel_size=None, activation="gelu", **kwargs):
        super().__init__(**kwargs)
        self.mlp_ratio = mlp_ratio
        self.kernel_size = kernel_size
        self.activation = gelu if activation == "gelu" else keras.activations.get(activation)

    def build(self, input_shape):
        channels = input_shape[-1]
        hidden_shape = (*input_shape[:-1], int(channels * self.mlp_ratio))
        if hidden_shape[-1] < 1:
            raise ValueError(
                "`mlp_ratio` must give at least one hidden channel. "
                f"Received: mlp_ratio={self.mlp_ratio}, channels={channels}"
            )
        self.expand = linear(hidden_shape[-1], "expand", self.dtype_policy)
        self.expand.build(input_shape)
        self.depthwise = None
        if self.kernel_size is not None:
            self.depthwise = DepthwiseConv2D(
                self.kernel_size,
                padding="same",
                data_format="channels_last",
                depthwise_initializer=conv_initializer(),
                name="depthwise",
                dtype=self.dtype_policy,
            )
            self.depthwise.build(hidden_shape)
        self.reduce = linear(channels, "reduce", self.dtype_policy)
        self.reduce.build(hidden_shape)
        keep_frozen(self)

    def call(self, x):
        # A layer that activates may draw or add losses.
        if isinstance(self.activation, keras.Layer) or adds_losses(self):
            return self._forward(x)
        return in_pieces(self._forward, (*x.shape[:-1], self.expand.units), x)

    def _forward(self, x):
        x = self.expand(x)
        if self.depthwise is not None:
            x = self.depthwise(x)
        # Other activations may draw, have weights or add losses.
        if self.activation is gelu and recomputes(x, [self.reduce]):
            return recomputed(self._activate_and_reduce, [self.reduce], x)
        return self._activate_and_reduce(x)

    def _activate_and_reduce(self, x):
        return self.reduce(self.activation(x))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "mlp_ratio": self.mlp_ratio,
            "kernel_size": self.kernel_size,
            "activation": "gelu" if self.activation is gelu else keras.activations.serialize(self.activation),
        }
