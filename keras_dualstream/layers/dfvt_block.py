"""DFvT's block."""

import keras

from keras_dualstream.layers.block import Block
from keras_dualstream.layers.dane import DANE
from keras_dualstream.layers.dane import FUSIONS as DANE_FUSIONS
from keras_dualstream.layers.dane import check_same_shape
from keras_dualstream.layers.drop_path import DropPath
from keras_dualstream.layers.feed_forward import FeedForward
from keras_dualstream.layers.float64 import LayerNormalization
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.window_attention import WindowAttention

# Those without weights.
SUMS = {"sum": lambda t, s: t + s, "sum_mul": lambda t, s: t + s + t * s, None: lambda t, s: t}
FUSIONS = (*DANE_FUSIONS, *SUMS)


@keras.saving.register_keras_serializable(package="keras_dualstream")
class DFvTBlock(Block, keras.layers.Layer):
    """DFvT block: attention of the context inside windows, spatial features fused in, feed-forward network.

    1. `t += WindowAttention(LN(t))`;
    2. `t = DANE(t, s)`;
    3. `t += FFN(LN(t))`;

    the branches 1 and 3 are dropped per sample in training.

    Args:
        num_heads: int. Heads of the attention; divides the channels.
        mlp_ratio: float. Ratio of the feed-forward network. Defaults to `4.0`.
        window_size: int. Window of the attention. Defaults to `7`.
        shift_size: int. Shift of the windows. Defaults to `0`.
        fusion: `"dane"`, `"reverse_dane"`, `"se"` or `"spatial"`, see `DANE`;
            `"sum"` for `t + s`, `"sum_mul"` for `t + s + t · s`; `None` for `t`.
            Defaults to `"dane"`.
        drop_path_rate: float. Rate of stochastic depth. Defaults to `0.0`.

    Call arguments:
        context: float tensor `(batch, height, width, channels)`, `t`.
        spatial: float tensor of the same shape, `s`; not needed with `fusion=None`.
        training: bool. Whether stochastic depth drops.

    Returns:
        Tensor of the shape of `context`.

    Raises:
        ValueError: if an argument has none of the values above, or the two maps
            have different shapes.

    Example:

    >>> y = DFvTBlock(num_heads=2, shift_size=3)(keras.ops.ones((2, 14, 10, 32)), keras.ops.ones((2, 14, 10, 32)))
    >>> tuple(y.shape)
    (2, 14, 10, 32)

    Reference:
        Gao et al., "Doubly-Fused ViT", section 3 (2022), https://doi.org/10.1007/978-3-031-20050-2_43
    """

    def __init__(
        self, num_heads, mlp_ratio=4.0, window_size=7, shift_size=0, fusion="dane", drop_path_rate=0.0, **kwargs
    ):
        super().__init__(**kwargs)
        if fusion not in FUSIONS:
            raise ValueError(f"`fusion` must be one of {FUSIONS}. Received: fusion={fusion!r}")
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.window_size = window_size
        self.shift_size = shift_size
        self.fusion = fusion
        self.drop_path_rate = drop_path_rate
        options = {"dtype": self.dtype_policy}
        self.norm1 = LayerNormalization(epsilon=1e-5, name="norm1", **options)
        self.attention = WindowAttention(num_heads, window_size, shift_size, name="attention", **options)
        self.dane = None if fusion in SUMS else DANE(fusion, name="dane", **options)
        self.norm2 = LayerNormalization(epsilon=1e-5, name="norm2", **options)
        self.feed_forward = FeedForward(mlp_ratio, name="feed_forward", **options)
        self.drop_path = DropPath(drop_path_rate, branches=2, name="drop_path", **options)

    def build(self, context_shape, spatial_shape=None):
        for layer in (self.norm1, self.attention, self.norm2, self.feed_forward):
            layer.build(context_shape)
        if self.fusion is not None:
            check_same_shape(context_shape, spatial_shape)
        if self.dane is not None:
            self.dane.build(context_shape, context_shape)
        keep_frozen(self)

    def call(self, context, spatial=None, training=None):
        factors = self.drop_path.draw(context, training=training)
        x = context + self.drop_path.drop(self.attention(self.norm1(context)), factors[0])
        x = SUMS[self.fusion](x, spatial) if self.dane is None else self.dane(x, spatial)
        return x + self.drop_path.drop(self.feed_forward(self.norm2(x)), factors[1])

    def compute_output_shape(self, context_shape, spatial_shape=None):
        return context_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "window_size": self.window_size,
            "shift_size": self.shift_size,
            "fusion": self.fusion,
            "drop_path_rate": self.drop_path_rate,
        }
