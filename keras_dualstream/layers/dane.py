"""DFvT's fusion of context and spatial features."""

import keras
from keras import ops

from keras_dualstream.layers.float64 import LayerNormalization
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.ops.activation import silu
from keras_dualstream.ops.float64 import mean

FUSIONS = ("dane", "reverse_dane", "se", "spatial")


def check_same_shape(context_shape, spatial_shape):
    """Raises a `ValueError` unless the maps that are to be fused have one shape, as far as it is known."""
    if spatial_shape is None or any(
        None not in sizes and sizes[0] != sizes[1] for sizes in zip(context_shape, spatial_shape, strict=False)
    ):
        raise ValueError(
            "`spatial` must have the shape of `context`. "
            f"Received: spatial of shape {spatial_shape}, context of shape {tuple(context_shape)}"
        )


@keras.saving.register_keras_serializable(package="keras_dualstream")
class DANE(NestedCall, keras.layers.Layer):
    """Dual attention enhancement: a mask of positions and channels chooses between two maps.

    `y = s · m + t · (1 - m)` for context features `t` and spatial features `s`.
    By default `m = sigmoid(a(s) + b(average of t))` with one number a position,
    `a = Linear∘LN`, and one a channel, `b = Linear∘LN∘SiLU∘Linear` over
    `C // reduction_ratio` channels; no linear layer has a bias. (The paper's
    equation 4 weighs `t` by `m`; checkpoints weigh `s`.)

    The other fusions are the paper's ablations, of which it gives the names and
    sizes only:

    - `"reverse_dane"`: `m = sigmoid(a(t) + b(average of s))`;
    - `"se"`: `m = sigmoid(b(average of t))`;
    - `"spatial"`: `m = sigmoid(c(s))` with `c = Linear∘LN∘SiLU∘Linear` down to one number a position.

    Args:
        fusion: `"dane"`, `"reverse_dane"`, `"se"` or `"spatial"`. Defaults to `"dane"`.
        reduction_ratio: int. Channels over hidden channels. With fewer than
            `2 · reduction_ratio` channels there is one hidden channel, which its
            normalisation makes constant. Defaults to `16`.

    Call arguments:
        context: float tensor `(batch, height, width, channels)`.
        spatial: float tensor of the same shape.

    Returns:
        Tensor of the shape of `context`.

    Raises:
        ValueError: if an argument has none of the values above, or the two maps
            have different shapes.

    Example:

    >>> y = DANE()(keras.ops.ones((2, 7, 9, 32)), keras.ops.zeros((2, 7, 9, 32)))
    >>> tuple(y.shape)
    (2, 7, 9, 32)

    Reference:
        Gao et al., "Doubly-Fused ViT", section 3.4 (2022), https://doi.org/10.1007/978-3-031-20050-2_43
    """

    def __init__(self, fusion="dane", reduction_ratio=16, **kwargs):
        super().__init__(**kwargs)
        if fusion not in FUSIONS:
            raise ValueError(f"`fusion` must be one of {FUSIONS}. Received: fusion={fusion!r}")
        if reduction_ratio < 1:
            raise ValueError(f"`reduction_ratio` must be at least 1. Received: reduction_ratio={reduction_ratio}")
        self.fusion = fusion
        self.reduction_ratio = reduction_ratio

    def build(self, context_shape, spatial_shape):
        check_same_shape(context_shape, spatial_shape)
        channels = context_shape[-1]
        hidden = max(channels // self.reduction_ratio, 1)
        norm = {"epsilon": 1e-5, "dtype": self.dtype_policy}
        self.position_norm = self.position = self.squeeze = self.squeeze_norm = self.expand = None
        if self.fusion in ("dane", "reverse_dane"):
            self.position_norm = LayerNormalization(name="position_norm", **norm)
            self.position_norm.build(context_shape)
        if self.fusion != "se":
            self.position = linear(1, "position", self.dtype_policy, use_bias=False)
            self.position.build((None, None, None, hidden if self.fusion == "spatial" else channels))
        self.squeeze = linear(hidden, "squeeze", self.dtype_policy, use_bias=False)
        self.squeeze.build(context_shape)
        self.squeeze_norm = LayerNormalization(name="squeeze_norm", **norm)
        self.squeeze_norm.build((None, None, None, hidden))
        if self.fusion != "spatial":
            self.expand = linear(channels, "expand", self.dtype_policy, use_bias=False)
            self.expand.build((None, None, None, hidden))
        keep_frozen(self)

    def call(self, context, spatial):
        mask = ops.sigmoid(self._logits(context, spatial))
        return spatial * mask + context * (1 - mask)

    def _logits(self, context, spatial):
        if self.fusion == "spatial":
            return self.position(self._squeezed(spatial))
        positions, channels = (context, spatial) if self.fusion == "reverse_dane" else (spatial, context)
        logits = self.expand(self._squeezed(mean(channels, axis=(1, 2), keepdims=True)))
        return logits if self.fusion == "se" else logits + self.position(self.position_norm(positions))

    def _squeezed(self, x):
        return self.squeeze_norm(silu(self.squeeze(x)))

    def compute_output_shape(self, context_shape, spatial_shape):
        check_same_shape(context_shape, spatial_shape)
        return context_shape

    def get_config(self):
        return {**super().get_config(), "fusion": self.fusion, "reduction_ratio": self.reduction_ratio}
