"""Class attention: the image's one token asks all the others."""

import keras
from keras import ops

from keras_dualstream.layers.attention import Attention
from keras_dualstream.layers.block import Block
from keras_dualstream.layers.feed_forward import FeedForward
from keras_dualstream.layers.float64 import LayerNormalization
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.ops.float64 import mean
from keras_dualstream.ops.tokens import map_to_tokens


@keras.saving.register_keras_serializable(package="keras_dualstream")
class ClassBlock(Block, keras.layers.Layer):
    """Class-attention block: condenses pixels and semantic tokens into one vector.

    The class token starts as the mean of all tokens, `c = mean([x ‖ z])`. With
    `t = LN([c ‖ x ‖ z])`:

    1. `c += Linear(Attention(q = t₀, k, v = t))`;
    2. `c += Linear(GELU(Linear(LN(c))))`.

    Args:
        num_heads: int. Heads of the attention; divides the channels.
        mlp_ratio: float. Ratio of the feed-forward network. Defaults to `2.0`.
        epsilon: float. Epsilon of the layer normalisations. Defaults to `1e-6`.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`: the feature map.
        z: float tensor `(batch, tokens, channels)`: the semantic tokens.

    Returns:
        Tensor `(batch, channels)`, not yet normalised.

    Raises:
        ValueError: if `num_heads` does not divide the channels.

    Example:

    >>> c = ClassBlock(num_heads=2)(keras.ops.ones((1, 4, 3, 32)), keras.ops.ones((1, 6, 32)))
    >>> tuple(c.shape)
    (1, 32)

    Reference:
        Touvron et al., "Going deeper with Image Transformers", section 3 (2021).
    """

    def __init__(self, num_heads, mlp_ratio=2.0, epsilon=1e-6, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.epsilon = epsilon
        options = {"dtype": self.dtype_policy}
        self.norm1 = LayerNormalization(epsilon=epsilon, name="norm1", **options)
        self.attention = Attention(num_heads, name="attention", **options)
        self.norm2 = LayerNormalization(epsilon=epsilon, name="norm2", **options)
        self.feed_forward = FeedForward(mlp_ratio, name="feed_forward", **options)

    def build(self, x_shape, z_shape):
        tokens_shape = (x_shape[0], None, x_shape[-1])
        self.attention.build(tokens_shape, tokens_shape)
        for layer in (self.norm1, self.norm2, self.feed_forward):
            layer.build(tokens_shape)
        keep_frozen(self)

    def call(self, x, z):
        tokens = ops.concatenate([map_to_tokens(x), z], axis=1)
        c = mean(tokens, axis=1, keepdims=True)
        t = self.norm1(ops.concatenate([c, tokens], axis=1))
        c = c + self.attention(t[:, :1], t)
        c = c + self.feed_forward(self.norm2(c))
        return c[:, 0]

    def compute_output_shape(self, x_shape, z_shape):
        return (x_shape[0], x_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "epsilon": self.epsilon,
        }
