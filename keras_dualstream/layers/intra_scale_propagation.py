"""DS-Net's Intra-scale Propagation: each scale mixes its own positions."""

import keras
from keras import ops

from keras_dualstream.layers.attention import SelfAttention
from keras_dualstream.layers.float64 import LayerNormalization
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.layers.pytorch_defaults import batch_normalization
from keras_dualstream.layers.pytorch_defaults import depthwise
from keras_dualstream.ops.channels import split_channels
from keras_dualstream.ops.resample import resize_bilinear
from keras_dualstream.ops.tokens import map_to_tokens
from keras_dualstream.ops.tokens import tokens_to_map


@keras.saving.register_keras_serializable(package="keras_dualstream")
class IntraScalePropagation(NestedCall, keras.layers.Layer):
    """Divides the channels into a local and a global stream, and lets each mix its own positions.

    The first channels, a share of `global_ratio`, are the global stream `g`, the
    others the local stream `l`:

    - `l += DW3×3(BN(l))` at full resolution;
    - `g` is resized bilinearly to a grid `global_stride` times smaller, and
      `g += MultiHeadSelfAttention(LN(g))`, without output projection.

    Args:
        num_heads: int. Heads of the attention; divides the global channels.
            Defaults to `1`.
        global_stride: int. How many times smaller the grid of the global stream
            is, of one position at least. Defaults to `1`.
        global_ratio: float in `[0, 1]`. Share of the channels in the global
            stream; the local one has `⌊channels · (1 - global_ratio)⌋`.
            Defaults to `0.5`.
        local_convolution: bool. Whether the local stream has its convolution;
            otherwise it passes. Defaults to `True`.
        global_attention: bool. Whether the global stream has its attention;
            otherwise it is only resized. Defaults to `True`.
        attention_dropout_rate: float. Rate at which training drops attention
            weights. Defaults to `0.1`.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`.
        training: bool. Whether to drop attention weights and to normalise by the
            batch's statistics.

    Returns:
        The pair of the local stream `(batch, height, width, local_channels)` and
        the global one `(batch, ⌊height / global_stride⌋, ⌊width / global_stride⌋,
        global_channels)`. A stream that `global_ratio` leaves no channel is empty.

    Raises:
        ValueError: if an argument has none of the values above, or `num_heads`
            does not divide the global channels.

    Example:

    >>> local, grid = IntraScalePropagation(num_heads=2, global_stride=4)(keras.ops.ones((2, 14, 9, 16)))
    >>> tuple(local.shape), tuple(grid.shape)
    ((2, 14, 9, 8), (2, 3, 2, 8))

    Reference:
        Mao et al., "Dual-stream Network for Visual Recognition", section 3.1
        (2021), https://arxiv.org/abs/2105.14734
    """

    def __init__(
        self,
        num_heads=1,
        global_stride=1,
        global_ratio=0.5,
        local_convolution=True,
        global_attention=True,
        attention_dropout_rate=0.1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if min(num_heads, global_stride) < 1:
            raise ValueError(
                "`num_heads` and `global_stride` must be at least 1. "
                f"Received: num_heads={num_heads}, global_stride={global_stride}"
            )
        if not 0 <= global_ratio <= 1:
            raise ValueError(f"`global_ratio` must be in [0, 1]. Received: global_ratio={global_ratio}")
        self.num_heads = num_heads
        self.global_stride = global_stride
        self.global_ratio = global_ratio
        self.local_convolution = local_convolution
        self.global_attention = global_attention
        self.attention_dropout_rate = attention_dropout_rate
        self.local_norm = self.convolution = self.global_norm = self.attention = None

    def build(self, input_shape):
        local_shape, global_shape = self.compute_output_shape(input_shape)
        self.global_channels = global_shape[-1]
        policy = self.dtype_policy
        if self.local_convolution and local_shape[-1]:
            self.local_norm = batch_normalization("local_norm", policy)
            self.convolution = depthwise(3, "convolution", policy)
            for layer in (self.local_norm, self.convolution):
                layer.build(local_shape)
        if self.global_attention and self.global_channels:
            self.global_norm = LayerNormalization(epsilon=1e-5, name="global_norm", dtype=policy)
            self.attention = SelfAttention(
                self.num_heads, False, self.attention_dropout_rate, name="attention", dtype=policy
            )
            for layer in (self.global_norm, self.attention):
                layer.build((global_shape[0], None, self.global_channels))
        keep_frozen(self)

    def call(self, x, training=None):
        x_global, x_local = split_channels(x, (self.global_channels, x.shape[-1] - self.global_channels))
        if self.convolution is not None:
            x_local = x_local + self.convolution(self.local_norm(x_local, training=training))
        if self.global_stride > 1 and self.global_channels:
            sizes = [_grid_size(size, self.global_stride) for size in ops.shape(x)[1:3]]
            x_global = resize_bilinear(x_global, *sizes)
        if self.attention is not None:
            tokens = map_to_tokens(x_global)
            tokens = tokens + self.attention(self.global_norm(tokens), training=training)
            x_global = tokens_to_map(tokens, like=x_global)
        return x_local, x_global

    def compute_output_shape(self, input_shape):
        *sizes, channels = input_shape[1:]
        local_channels = int(channels * (1 - self.global_ratio))
        global_channels = channels - local_channels
        if global_channels:
            sizes = [None if size is None else _grid_size(size, self.global_stride) for size in sizes]
        return (*input_shape[:3], local_channels), (input_shape[0], *sizes, global_channels)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "global_stride": self.global_stride,
            "global_ratio": self.global_ratio,
            "local_convolution": self.local_convolution,
            "global_attention": self.global_attention,
            "attention_dropout_rate": self.attention_dropout_rate,
        }


def _grid_size(size, stride):
    """`⌊size / stride⌋`, but at least one position."""
    return max(size // stride, 1) if isinstance(size, int) else ops.maximum(size // stride, 1)
