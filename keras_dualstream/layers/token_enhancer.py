"""TransXNet's squeezed token enhancer."""

import keras

from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.layers.normalized_gelu import from_normalized_gelu
from keras_dualstream.layers.pytorch_defaults import batch_normalization
from keras_dualstream.layers.pytorch_defaults import depthwise
from keras_dualstream.layers.pytorch_defaults import linear


@keras.saving.register_keras_serializable(package="keras_dualstream")
class SqueezedTokenEnhancer(NestedCall, keras.layers.Layer):
    """Squeezed token enhancer: mixes neighbours, then channels through a narrow waist.

    `y = x + BN(Linear(BN(GELU(Linear(BN(GELU(DW3×3(x))))))))`; the waist has
    `max(minimum_channels, C // reduction_ratio)` channels.

    Args:
        reduction_ratio: int. Channels over channels of the waist. Defaults to `8`.
        minimum_channels: int. Least channels of the waist. Defaults to `16`.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`.
        training: bool. Whether batch normalisation uses the batch's statistics.

    Returns:
        Tensor of the shape of `x`.

    Raises:
        ValueError: if an argument is below 1.

    Example:

    >>> y = SqueezedTokenEnhancer()(keras.ops.ones((2, 14, 10, 48)))
    >>> tuple(y.shape)
    (2, 14, 10, 48)

    Reference:
        Lou et al., "TransXNet", eq. 8 (2025), https://arxiv.org/abs/2310.19380
    """

    def __init__(self, reduction_ratio=8, minimum_channels=16, **kwargs):
        super().__init__(**kwargs)
        if min(reduction_ratio, minimum_channels) < 1:
            raise ValueError(
                "`reduction_ratio` and `minimum_channels` must be at least 1. Received: "
                f"reduction_ratio={reduction_ratio}, minimum_channels={minimum_channels}"
            )
        self.reduction_ratio = reduction_ratio
        self.minimum_channels = minimum_channels

    def build(self, input_shape):
        channels = input_shape[-1]
        waist = max(self.minimum_channels, channels // self.reduction_ratio)
        policy = self.dtype_policy
        self.depthwise = depthwise(3, "depthwise", policy)
        self.squeeze = linear(waist, "squeeze", policy)
        self.expand = linear(channels, "expand", policy)
        norms = (batch_normalization(f"norm{i}", policy) for i in (1, 2, 3))
        self.norm1, self.norm2, self.norm3 = norms
        for layer in (self.depthwise, self.norm1, self.squeeze, self.norm3):
            layer.build((None, None, None, channels))
        for layer in (self.norm2, self.expand):
            layer.build((None, None, None, waist))
        keep_frozen(self)

    def call(self, x, training=None):
        y = from_normalized_gelu(self.squeeze, [self.squeeze], self.norm1, self.depthwise(x), training)
        y = from_normalized_gelu(self.expand, [self.expand], self.norm2, y, training)
        return x + self.norm3(y, training=training, overwrite=True)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "reduction_ratio": self.reduction_ratio,
            "minimum_channels": self.minimum_channels,
        }
