"""TransXNet's block."""

import keras

from keras_dualstream.layers.block import Block
from keras_dualstream.layers.d_mixer import DMixer
from keras_dualstream.layers.drop_path import DropPath
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.group_normalization import GroupNormalization
from keras_dualstream.layers.layer_scale import LayerScale
from keras_dualstream.layers.ms_ffn import MSFFN
from keras_dualstream.layers.pytorch_defaults import depthwise


@keras.saving.register_keras_serializable(package="keras_dualstream")
class TransXNetBlock(Block, keras.layers.Layer):
    """TransXNet block: position encoding, D-Mixer, multi-scale feed-forward network.

    1. `x += DW7×7(x)` (dynamic position encoding, DPE);
    2. `x += γ₁ · DMixer(GN(x)) + β₁`;
    3. `x += γ₂ · MSFFN(GN(x)) + β₂`;

    γ and β are LayerScales, and the branches 2 and 3 are dropped per sample in training.

    Args:
        num_heads: int. Heads of the attention. Defaults to `1`.
        sr_ratio: int. Reduction of the attention's keys. Defaults to `1`.
        mlp_ratio: float. Ratio of the feed-forward network. Defaults to `4.0`.
        scales: tuple of odd int. Kernel sizes of the feed-forward network.
            Defaults to `(1, 3, 5, 7)`.
        drop_path_rate: float. Rate of stochastic depth. Defaults to `0.0`.
        layer_scale_init_value: float. Starting value of every γ. Defaults to `1e-5`.
        position_encoding: bool. Whether the block starts with DPE. Defaults to `True`.
        mixer_options: dict of the other arguments of `DMixer`, or `None`. Defaults to `None`.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`.
        position_bias: float tensor `(1, num_heads, queries, keys)` as
            `PositionBias` gives it, or `None`.
        training: bool. Whether stochastic depth drops and batch normalisation
            uses the batch's statistics.

    Returns:
        Tensor of the shape of `x`.

    Raises:
        ValueError: if an argument does not suit the part that receives it.

    Example:

    >>> y = TransXNetBlock(num_heads=2, sr_ratio=2)(keras.ops.ones((2, 14, 10, 48)))
    >>> tuple(y.shape)
    (2, 14, 10, 48)

    Reference:
        Lou et al., "TransXNet", section 3.5 (2025), https://arxiv.org/abs/2310.19380
    """

    def __init__(
        self,
        num_heads=1,
        sr_ratio=1,
        mlp_ratio=4.0,
        scales=(1, 3, 5, 7),
        drop_path_rate=0.0,
        layer_scale_init_value=1e-5,
        position_encoding=True,
        mixer_options=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.mlp_ratio = mlp_ratio
        self.scales = tuple(scales)
        self.drop_path_rate = drop_path_rate
        self.layer_scale_init_value = layer_scale_init_value
        self.position_encoding = position_encoding
        self.mixer_options = dict(mixer_options or {})
        options = {"dtype": self.dtype_policy}
        self.encoding = depthwise(7, "encoding", self.dtype_policy, residual=True) if position_encoding else None
        self.norm1 = GroupNormalization(name="norm1", **options)
        self.mixer = DMixer(num_heads, sr_ratio, name="mixer", **self.mixer_options, **options)
        self.scale1 = LayerScale(layer_scale_init_value, use_bias=True, name="scale1", **options)
        self.norm2 = GroupNormalization(name="norm2", **options)
        self.feed_forward = MSFFN(mlp_ratio, scales, name="feed_forward", **options)
        self.scale2 = LayerScale(layer_scale_init_value, use_bias=True, name="scale2", **options)
        self.drop_path = DropPath(drop_path_rate, branches=2, name="drop_path", **options)

    def build(self, x_shape, position_bias_shape=None):
        if self.encoding is not None:
            self.encoding.build(x_shape)
        self.mixer.build(x_shape, position_bias_shape)
        for layer in (self.norm1, self.scale1, self.norm2, self.feed_forward, self.scale2):
            layer.build(x_shape)
        keep_frozen(self)

    def call(self, x, position_bias=None, training=None):
        factors = self.drop_path.draw(x, training=training)
        if self.encoding is not None:
            x = self.encoding(x)
        branch = self.mixer(self.norm1(x), position_bias, training=training)
        x = x + self.drop_path.drop(self.scale1(branch), factors[0])
        branch = self.feed_forward(self.norm2(x), training=training)
        return x + self.drop_path.drop(self.scale2(branch), factors[1])

    def compute_output_shape(self, x_shape, position_bias_shape=None):
        return x_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "sr_ratio": self.sr_ratio,
            "mlp_ratio": self.mlp_ratio,
            "scales": self.scales,
            "drop_path_rate": self.drop_path_rate,
            "layer_scale_init_value": self.layer_scale_init_value,
            "position_encoding": self.position_encoding,
            "mixer_options": dict(self.mixer_options),
        }
