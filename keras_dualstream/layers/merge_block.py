"""Dual-ViT's Merge block: pixels and semantic tokens attend together."""

import functools

import keras
from keras import ops

from keras_dualstream.layers.attention import Attention
from keras_dualstream.layers.block import Block
from keras_dualstream.layers.drop_path import DropPath
from keras_dualstream.layers.feed_forward import FeedForward
from keras_dualstream.layers.float64 import LayerNormalization
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.layer_scale import LayerScale
from keras_dualstream.ops.tokens import map_to_tokens
from keras_dualstream.ops.tokens import split_tokens
from keras_dualstream.ops.tokens import tokens_to_map


@keras.saving.register_keras_serializable(package="keras_dualstream")
class MergeBlock(Block, keras.layers.Layer):
    """Merge block: self-attention over pixels and semantic tokens together.

    On `y = [x ‖ z]`, with normalisations and LayerScales shared by both kinds:

    1. `y += γ₁ · MultiHeadSelfAttention(LN(y))`;
    2. `y += γ₂ · FeedForward(LN(y))`: pixels through one with a 3×3 depthwise
       convolution, semantic tokens through a plain one of ratio 2.

    Args:
        num_heads: int. Heads of the attention; divides the channels.
        mlp_ratio: float. Ratio of the pixels' feed-forward network. Defaults to `4.0`.
        drop_path_rate: float. Rate of stochastic depth. Defaults to `0.0`.
        layer_scale_init_value: float. Starting value of every γ. Defaults to `1e-6`.
        remat: bool. Whether training recomputes the block in the backward pass
            (`keras.remat`) instead of keeping its activations. Defaults to `False`.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`: the feature map.
        z: float tensor `(batch, tokens, channels)`: the semantic tokens.
        training: bool. Whether stochastic depth drops.

    Returns:
        The pair `(x, z)`, of the shapes that came in.

    Raises:
        ValueError: if `num_heads` does not divide the channels.

    Example:

    >>> x, z = MergeBlock(num_heads=2)(keras.ops.ones((1, 4, 3, 32)), keras.ops.ones((1, 6, 32)))
    >>> tuple(x.shape), tuple(z.shape)
    ((1, 4, 3, 32), (1, 6, 32))

    Reference:
        Yao et al., "Dual Vision Transformer", eq. 8-9 (2023).
    """

    def __init__(
        self, num_heads, mlp_ratio=4.0, drop_path_rate=0.0, layer_scale_init_value=1e-6, remat=False, **kwargs
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.drop_path_rate = drop_path_rate
        self.layer_scale_init_value = layer_scale_init_value
        self.remat = remat
        options = {"dtype": self.dtype_policy}
        self.norm1 = LayerNormalization(epsilon=1e-6, name="norm1", **options)
        self.attention = Attention(num_heads, name="attention", **options)
        self.scale1 = LayerScale(layer_scale_init_value, name="scale1", **options)
        self.norm2 = LayerNormalization(epsilon=1e-6, name="norm2", **options)
        self.feed_forward = FeedForward(mlp_ratio, kernel_size=3, name="feed_forward", **options)
        self.semantic_feed_forward = FeedForward(2.0, name="semantic_feed_forward", **options)
        self.scale2 = LayerScale(layer_scale_init_value, name="scale2", **options)
        self.drop_path = DropPath(drop_path_rate, branches=2, name="drop_path", **options)

    def build(self, x_shape, z_shape):
        tokens_shape = (x_shape[0], None, x_shape[-1])
        self.attention.build(tokens_shape, tokens_shape)
        self.feed_forward.build(x_shape)
        self.semantic_feed_forward.build(z_shape)
        for layer in (self.norm1, self.scale1, self.norm2, self.scale2):
            layer.build(tokens_shape)
        keep_frozen(self)

    def call(self, x, z, training=None):
        # Drawn outside of what `remat` computes twice: the second time must drop the same samples.
        factors = self.drop_path.draw(x, training=training)
        # Bound, not passed: TensorFlow's recomputation takes no `None`.
        forward = functools.partial(self._forward, factors=factors)
        return (keras.remat(forward) if self.remat and training else forward)(x, z)

    def _forward(self, x, z, factors):
        _, height, width, _ = ops.shape(x)
        pixels = height * width
        y = ops.concatenate([map_to_tokens(x), z], axis=1)
        n = self.norm1(y)
        y = y + self.drop_path.drop(self.scale1(self.attention(n, n)), factors[0])
        n_x, n_z = split_tokens(self.norm2(y), pixels)
        branch = [map_to_tokens(self.feed_forward(tokens_to_map(n_x, like=x))), self.semantic_feed_forward(n_z)]
        y = y + self.drop_path.drop(self.scale2(ops.concatenate(branch, axis=1)), factors[1])
        x_tokens, z = split_tokens(y, pixels)
        return tokens_to_map(x_tokens, like=x), z

    def compute_output_shape(self, x_shape, z_shape):
        return x_shape, z_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "drop_path_rate": self.drop_path_rate,
            "layer_scale_init_value": self.layer_scale_init_value,
            "remat": self.remat,
        }
