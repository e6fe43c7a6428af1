"""DS-Net's Inter-scale Alignment: two streams of different scales attend to each other."""

import functools

import keras
from keras import ops

from keras_dualstream.layers.attention import attention_dropout
from keras_dualstream.layers.float64 import LayerNormalization
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.layers.pytorch_defaults import batch_normalization
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.ops.position_bias import position_biased_attention
from keras_dualstream.ops.tokens import map_to_tokens
from keras_dualstream.ops.tokens import tokens_to_map


@keras.saving.register_keras_serializable(package="keras_dualstream")
class CoAttention(NestedCall, keras.layers.Layer):
    """Inter-scale Alignment: a fine local map and a coarse global one attend to each other.

    With `qₗ, kₗ, vₗ = Linear(BN(l))` and `q_g, k_g, v_g = Linear(LN(g))`, each
    fused into one linear layer, and both read as they come in:

    - `l += Linear(softmax(qₗ k_gᵀ / √d) v_g)`, from global to local;
    - `g += Linear(softmax(q_g kₗᵀ / √d) vₗ)`, from local to global.

    The cost is linear in the positions of the local map: they attend to those
    of the global map alone, never to each other.

    Args:
        num_heads: int. Heads; divides `alignment_dim`. Defaults to `1`.
        alignment_dim: int. Channels of queries, keys and values; `None` for the
            fewer of the two maps' channels. Defaults to `None`.
        attention_dropout_rate: float. Rate at which training drops attention
            weights. Defaults to `0.1`.
        local_to_global: bool. Whether the global map reads from the local one.
            Defaults to `True`.
        global_to_local: bool. Whether the local map reads from the global one.
            Defaults to `True`.

    Call arguments:
        x_local: float tensor `(batch, height, width, local_channels)`.
        x_global: float tensor `(batch, grid_height, grid_width, global_channels)`.
        training: bool. Whether to drop attention weights and to normalise by the
            batch's statistics.

    Returns:
        The pair `(x_local, x_global)`, of the shapes that came in.

    Raises:
        ValueError: if an argument has none of the values above, or neither map
            reads from the other.

    Example:

    >>> fine, coarse = keras.Input((14, 21, 32)), keras.Input((3, 5, 32))
    >>> aligned = CoAttention(num_heads=2)(fine, coarse)
    >>> model = keras.Model([fine, coarse], aligned)
    >>> model.output_shape
    [(None, 14, 21, 32), (None, 3, 5, 32)]

    Reference:
        Mao et al., "Dual-stream Network for Visual Recognition", eq. 3-6
        (2021), https://arxiv.org/abs/2105.14734
    """

    def __init__(
        self,
        num_heads=1,
        alignment_dim=None,
        attention_dropout_rate=0.1,
        local_to_global=True,
        global_to_local=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"`num_heads` must be at least 1. Received: num_heads={num_heads}")
        if alignment_dim is not None and (alignment_dim < 1 or alignment_dim % num_heads):
            raise ValueError(
                "`alignment_dim` must be positive and a multiple of `num_heads`, or None. "
                f"Received: alignment_dim={alignment_dim}, num_heads={num_heads}"
            )
        if not (local_to_global or global_to_local):
            raise ValueError(
                "`local_to_global` or `global_to_local` must be True. "
                f"Received: local_to_global={local_to_global}, global_to_local={global_to_local}"
            )
        self.num_heads = num_heads
        self.alignment_dim = alignment_dim
        self.attention_dropout_rate = attention_dropout_rate
        self.local_to_global = local_to_global
        self.global_to_local = global_to_local
        self.attention_dropout = attention_dropout(attention_dropout_rate, self.dtype_policy)
        self.local_output = self.global_output = None

    def build(self, x_local_shape, x_global_shape):
        dim = self._dim(x_local_shape[-1], x_global_shape[-1])
        policy = self.dtype_policy
        # A map that only asks has no keys and values, one that only answers no queries.
        asks, answers = int(self.global_to_local), 2 * self.local_to_global
        self.local_norm = batch_normalization("local_norm", policy)
        self.local_projection = linear((asks + answers) * dim, "local_projection", policy)
        asks, answers = int(self.local_to_global), 2 * self.global_to_local
        self.global_norm = LayerNormalization(epsilon=1e-5, name="global_norm", dtype=policy)
        self.global_projection = linear((asks + answers) * dim, "global_projection", policy)
        for layer in (self.local_norm, self.local_projection):
            layer.build(x_local_shape)
        for layer in (self.global_norm, self.global_projection):
            layer.build(x_global_shape)
        if self.global_to_local:
            self.local_output = linear(x_local_shape[-1], "local_output", policy)
            self.local_output.build((None, None, dim))
        if self.local_to_global:
            self.global_output = linear(x_global_shape[-1], "global_output", policy)
            self.global_output.build((None, None, dim))
        keep_frozen(self)

    def _dim(self, local_channels, global_channels):
        dim = self.alignment_dim or min(local_channels, global_channels)
        if dim < 1 or dim % self.num_heads:
            raise ValueError(
                "`num_heads` must divide the fewer of the channels of both maps, or `alignment_dim` be given. "
                f"Received: num_heads={self.num_heads}, {local_channels} local and {global_channels} global channels"
            )
        return dim

    def call(self, x_local, x_global, training=None):
        local_parts = _parts(
            self.local_projection(self.local_norm(x_local, training=training)),
            self.global_to_local,
            self.local_to_global,
        )
        global_parts = _parts(
            self.global_projection(self.global_norm(x_global)), self.local_to_global, self.global_to_local
        )
        attend = functools.partial(
            position_biased_attention,
            num_heads=self.num_heads,
            remat=bool(training),
            dropout=self.attention_dropout if training and self.attention_dropout_rate > 0 else None,
        )
        y_local, y_global = x_local, x_global
        if self.global_to_local:
            tokens = attend(local_parts["query"], global_parts["key"], global_parts["value"])
            y_local = x_local + tokens_to_map(self.local_output(tokens), like=x_local)
        if self.local_to_global:
            tokens = attend(global_parts["query"], local_parts["key"], local_parts["value"])
            y_global = x_global + tokens_to_map(self.global_output(tokens), like=x_global)
        return y_local, y_global

    def compute_output_shape(self, x_local_shape, x_global_shape):
        return x_local_shape, x_global_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "alignment_dim": self.alignment_dim,
            "attention_dropout_rate": self.attention_dropout_rate,
            "local_to_global": self.local_to_global,
            "global_to_local": self.global_to_local,
        }


def _parts(x, asks, answers):
    """The tokens of a projected map by what they are for: `"query"` if it asks, `"key"` and `"value"` if it answers."""
    names = ["query"] * asks + ["key", "value"] * answers
    return dict(zip(names, ops.split(map_to_tokens(x), len(names), axis=-1), strict=True))
