"""TransXNet's dual dynamic token mixer."""

import keras
from keras import ops

from keras_dualstream.layers.dynamic_conv import DDWConv
from keras_dualstream.layers.dynamic_conv import DyConv
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.id_conv import IDConv
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.layers.osra import OSRA
from keras_dualstream.layers.pytorch_defaults import depthwise
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.layers.token_enhancer import SqueezedTokenEnhancer
from keras_dualstream.layers.window_attention import WindowAttention
from keras_dualstream.ops.channels import split_channels

LOCAL_OPERATORS = ("id_conv", "depthwise_conv", "window_attention", "dy_conv", "d_dw_conv")


@keras.saving.register_keras_serializable(package="keras_dualstream")
class DMixer(NestedCall, keras.layers.Layer):
    """D-Mixer: local dynamics in some channels, global dynamics in the others.

    `y = STE([IDConv(x₁) ‖ OSRA(x₂)])` with the channels of `x` split in `x₁` and
    `x₂`, in this order (the paper prints the other one; checkpoints have this).

    Args:
        num_heads: int. Heads of the attention; divides its channels. Defaults to `1`.
        sr_ratio: int. Reduction of the attention's keys. Defaults to `1`.
        kernel_size: int, odd. Kernel of the local operator; the window of
            `"window_attention"`. Defaults to `7`.
        num_groups: int. Learned kernels that `"id_conv"` and `"dy_conv"` mix. Defaults to `2`.
        attention_ratio: float in `(0, 1]`. Share of the channels that OSRA
            receives; 1 leaves no local operator. Defaults to `0.5`.
        local_operator: `"id_conv"`, `"depthwise_conv"`, `"window_attention"`
            (with `num_heads` heads), `"dy_conv"` or `"d_dw_conv"`. Defaults to `"id_conv"`.
        overlapping_reduction: bool. Whether OSRA's reduction overlaps. Defaults to `True`.
        token_enhancer: bool. Whether the squeezed token enhancer mixes the two
            halves; otherwise a 1×1 convolution does. Defaults to `True`.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`.
        position_bias: float tensor `(1, num_heads, queries, keys)` as
            `PositionBias` gives it, or `None`.
        training: bool. Whether batch normalisation uses the batch's statistics.

    Returns:
        Tensor of the shape of `x`.

    Raises:
        ValueError: if an argument has none of the values above.

    Example:

    >>> y = DMixer(num_heads=2, sr_ratio=2)(keras.ops.ones((2, 14, 10, 48)))
    >>> tuple(y.shape)
    (2, 14, 10, 48)

    Reference:
        Lou et al., "TransXNet", eq. 7 (2025), https://arxiv.org/abs/2310.19380
    """

    def __init__(
        self,
        num_heads=1,
        sr_ratio=1,
        kernel_size=7,
        num_groups=2,
        attention_ratio=0.5,
        local_operator="id_conv",
        overlapping_reduction=True,
        token_enhancer=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if local_operator not in LOCAL_OPERATORS:
            raise ValueError(
                f"`local_operator` must be one of {LOCAL_OPERATORS}. Received: local_operator={local_operator!r}"
            )
        if not 0 < attention_ratio <= 1:
            raise ValueError(f"`attention_ratio` must be in (0, 1]. Received: attention_ratio={attention_ratio}")
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.kernel_size = kernel_size
        self.num_groups = num_groups
        self.attention_ratio = attention_ratio
        self.local_operator = local_operator
        self.overlapping_reduction = overlapping_reduction
        self.token_enhancer = token_enhancer
        options = {"dtype": self.dtype_policy}
        self.local = None if attention_ratio == 1 else self._local_operator(options)
        self.attention = OSRA(num_heads, sr_ratio, overlapping_reduction, name="attention", **options)
        self.fusion = SqueezedTokenEnhancer(name="fusion", **options) if token_enhancer else None

    def _local_operator(self, options):
        options = dict(name="local", **options)
        if self.local_operator == "id_conv":
            return IDConv(self.kernel_size, self.num_groups, **options)
        if self.local_operator == "dy_conv":
            return DyConv(self.kernel_size, num_groups=self.num_groups, **options)
        if self.local_operator == "d_dw_conv":
            return DDWConv(self.kernel_size, **options)
        if self.local_operator == "window_attention":
            return WindowAttention(self.num_heads, self.kernel_size, **options)
        return depthwise(self.kernel_size, **options)

    def build(self, x_shape, position_bias_shape=None):
        channels = x_shape[-1]
        self.local_channels = channels - round(channels * self.attention_ratio)
        if self.local_channels == channels or (self.local is not None and self.local_channels == 0):
            raise ValueError(
                "`attention_ratio` must leave each branch a channel. "
                f"Received: attention_ratio={self.attention_ratio}, channels={channels}"
            )
        if self.local is not None:
            self.local.build((*x_shape[:-1], self.local_channels))
        self.attention.build((*x_shape[:-1], channels - self.local_channels), position_bias_shape)
        if not self.token_enhancer:
            self.fusion = linear(channels, "fusion", self.dtype_policy)
        self.fusion.build(x_shape)
        keep_frozen(self)

    def call(self, x, position_bias=None, training=None):
        # The parts take `training` from Keras' call context; only some of them have the argument.
        if self.local is None:
            return self.fusion(self.attention(x, position_bias))
        x_local, x_global = split_channels(x, (self.local_channels, x.shape[-1] - self.local_channels))
        y = ops.concatenate([self.local(x_local), self.attention(x_global, position_bias)], axis=-1)
        return self.fusion(y)

    def compute_output_shape(self, x_shape, position_bias_shape=None):
        return x_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "sr_ratio": self.sr_ratio,
            "kernel_size": self.kernel_size,
            "num_groups": self.num_groups,
            "attention_ratio": self.attention_ratio,
            "local_operator": self.local_operator,
            "overlapping_reduction": self.overlapping_reduction,
            "token_enhancer": self.token_enhancer,
        }
