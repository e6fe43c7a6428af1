"""DS-Net's block."""

import keras
from keras import ops

from keras_dualstream.layers.block import Block
from keras_dualstream.layers.co_attention import CoAttention
from keras_dualstream.layers.drop_path import DropPath
from keras_dualstream.layers.feed_forward import FeedForward
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.intra_scale_propagation import IntraScalePropagation
from keras_dualstream.layers.pytorch_defaults import batch_normalization
from keras_dualstream.layers.pytorch_defaults import depthwise
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.ops.resample import resize_bilinear


@keras.saving.register_keras_serializable(package="keras_dualstream")
class DSBlock(Block, keras.layers.Layer):
    """DS-Block: a local and a global stream side by side, aligned with each other and fused.

    1. `x += DW3×3(x)` (position encoding);
    2. `l, g = IntraScalePropagation(Linear(BN(x)))`: a local stream at full
       resolution, a global one on a grid `global_stride` times smaller;
    3. `l, g = CoAttention(l, g)`, with inter-scale alignment;
    4. `x += Linear([l ‖ resize(g)])`, with `g` resized bilinearly to the map;
    5. `x += FeedForward(BN(x))`.

    The branches 4 and 5 are dropped per sample in training.

    Args:
        num_heads: int. Heads of every attention. Defaults to `1`.
        global_stride: int. How many times smaller the grid of the global stream
            is. Defaults to `1`.
        mlp_ratio: float. Ratio of the feed-forward network. Defaults to `4.0`.
        global_ratio: float. Share of the channels in the global stream: in
            `[0, 1]` without alignment, between them with it. Defaults to `0.5`.
        drop_path_rate: float. Rate of stochastic depth. Defaults to `0.0`.
        attention_dropout_rate: float. Rate at which training drops attention
            weights. Defaults to `0.1`.
        inter_scale_alignment: bool. Whether the streams attend to each other.
            Defaults to `True`.
        alignment_dim: int or `None`. See `CoAttention`. Defaults to `None`.
        local_convolution: bool. See `IntraScalePropagation`. Defaults to `True`.
        global_attention: bool. See `IntraScalePropagation`. Defaults to `True`.
        local_to_global: bool. With alignment, whether the global stream reads
            from the local one. Defaults to `True`.
        global_to_local: bool. With alignment, whether the local stream reads
            from the global one; with neither there is no alignment. Defaults to `True`.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`.
        training: bool. Whether to drop, and to normalise by the batch's statistics.

    Returns:
        Tensor of the shape of `x`.

    Raises:
        ValueError: if an argument does not suit the part that receives it, or
            `global_ratio` leaves one stream of an alignment without channels.

    Example:

    >>> x = keras.Input((14, 9, 32))
    >>> y = DSBlock(num_heads=2, global_stride=4)(x)
    >>> model = keras.Model(x, y)
    >>> model.output_shape
    (None, 14, 9, 32)

    Reference:
        Mao et al., "Dual-stream Network for Visual Recognition", section 3
        (2021), https://arxiv.org/abs/2105.14734
    """

    def __init__(
        self,
        num_heads=1,
        global_stride=1,
        mlp_ratio=4.0,
        global_ratio=0.5,
        drop_path_rate=0.0,
        attention_dropout_rate=0.1,
        inter_scale_alignment=True,
        alignment_dim=None,
        local_convolution=True,
        global_attention=True,
        local_to_global=True,
        global_to_local=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.global_stride = global_stride
        self.mlp_ratio = mlp_ratio
        self.global_ratio = global_ratio
        self.drop_path_rate = drop_path_rate
        self.attention_dropout_rate = attention_dropout_rate
        self.inter_scale_alignment = inter_scale_alignment
        self.alignment_dim = alignment_dim
        self.local_convolution = local_convolution
        self.global_attention = global_attention
        self.local_to_global = local_to_global
        self.global_to_local = global_to_local
        policy = self.dtype_policy
        self.position = depthwise(3, "position", policy, residual=True)
        self.norm1 = batch_normalization("norm1", policy)
        self.propagation = IntraScalePropagation(
            num_heads,
            global_stride,
            global_ratio,
            local_convolution,
            global_attention,
            attention_dropout_rate,
            name="propagation",
            dtype=policy,
        )
        self.alignment = self._alignment(policy)
        self.norm2 = batch_normalization("norm2", policy)
        self.feed_forward = FeedForward(mlp_ratio, name="feed_forward", dtype=policy)
        self.drop_path = DropPath(drop_path_rate, branches=2, name="drop_path", dtype=policy)

    def _alignment(self, policy):
        if not self.inter_scale_alignment or not (self.local_to_global or self.global_to_local):
            return None
        if not 0 < self.global_ratio < 1:
            raise ValueError(
                "`global_ratio` must be between 0 and 1, or `inter_scale_alignment` be False: one stream alone has "
                f"nothing to align with. Received: global_ratio={self.global_ratio}"
            )
        return CoAttention(
            self.num_heads,
            self.alignment_dim,
            self.attention_dropout_rate,
            self.local_to_global,
            self.global_to_local,
            name="alignment",
            dtype=policy,
        )

    def build(self, input_shape):
        self.input_projection = linear(input_shape[-1], "input_projection", self.dtype_policy)
        self.output_projection = linear(input_shape[-1], "output_projection", self.dtype_policy)
        for layer in (self.position, self.norm1, self.input_projection, self.propagation):
            layer.build(input_shape)
        if self.alignment is not None:
            self._build_alignment(input_shape)
        for layer in (self.output_projection, self.norm2, self.feed_forward):
            layer.build(input_shape)
        keep_frozen(self)

    def _build_alignment(self, input_shape):
        shapes = self.propagation.compute_output_shape(input_shape)
        if any(shape[-1] == 0 for shape in shapes):
            raise ValueError(
                "`global_ratio` must leave both streams a channel to be aligned. "
                f"Received: global_ratio={self.global_ratio}, channels={input_shape[-1]}"
            )
        self.alignment.build(*shapes)

    def call(self, x, training=None):
        factors = self.drop_path.draw(x, training=training)
        x = self.position(x)
        y = self.input_projection(self.norm1(x, training=training))
        x_local, x_global = self.propagation(y, training=training)
        if self.alignment is not None:
            x_local, x_global = self.alignment(x_local, x_global, training=training)
        branch = self.output_projection(self._join(x_local, x_global))
        x = x + self.drop_path.drop(branch, factors[0])
        branch = self.feed_forward(self.norm2(x, training=training))
        return x + self.drop_path.drop(branch, factors[1])

    def _join(self, x_local, x_global):
        """Both streams at full resolution in one map, or the only one that has channels."""
        if x_global.shape[-1] == 0:
            return x_local
        if self.global_stride > 1:
            x_global = resize_bilinear(x_global, *ops.shape(x_local)[1:3])
        return x_global if x_local.shape[-1] == 0 else ops.concatenate([x_local, x_global], axis=-1)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "global_stride": self.global_stride,
            "mlp_ratio": self.mlp_ratio,
            "global_ratio": self.global_ratio,
            "drop_path_rate": self.drop_path_rate,
            "attention_dropout_rate": self.attention_dropout_rate,
            "inter_scale_alignment": self.inter_scale_alignment,
            "alignment_dim": self.alignment_dim,
            "local_convolution": self.local_convolution,
            "global_attention": self.global_attention,
            "local_to_global": self.local_to_global,
            "global_to_local": self.global_to_local,
        }
