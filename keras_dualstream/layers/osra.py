"""TransXNet's overlapping spatial reduction attention."""

import keras
from keras import ops

from keras_dualstream.layers.attention import check_heads
from keras_dualstream.layers.folding import normalized
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.initializers import Constant
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.layers.pytorch_defaults import batch_normalization
from keras_dualstream.layers.pytorch_defaults import depthwise
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.ops.activation import gelu
from keras_dualstream.ops.position_bias import position_biased_attention
from keras_dualstream.ops.tokens import map_to_tokens
from keras_dualstream.ops.tokens import tokens_to_map


@keras.saving.register_keras_serializable(package="keras_dualstream")
class PositionBias(NestedCall, keras.layers.Layer):
    """A learned bias per head, query and key that blocks of one stage share.

    The table has the numbers of queries and keys that a map of `height` by
    `width` gives under `OSRA`; on other maps `OSRA` resizes it.

    Args:
        num_heads: int.
        height: int. Rows of the map that the table is made for.
        width: int. Columns of that map.
        sr_ratio: int. Reduction of the keys. Defaults to `1`.

    Call arguments:
        x: tensor of any kind; the bias does not depend on it.

    Returns:
        Tensor `(1, num_heads, height · width, ⌈height / sr_ratio⌉ · ⌈width / sr_ratio⌉)`.

    Raises:
        ValueError: if an argument is below 1.

    Example:

    >>> x = keras.ops.ones((2, 14, 14, 32))
    >>> bias = PositionBias(num_heads=4, height=14, width=14, sr_ratio=2)(x)
    >>> tuple(bias.shape)
    (1, 4, 196, 49)

    Reference:
        Lou et al., "TransXNet", section 3.2 (2025).
    """

    def __init__(self, num_heads, height, width, sr_ratio=1, **kwargs):
        super().__init__(**kwargs)
        if min(num_heads, height, width, sr_ratio) < 1:
            raise ValueError(
                "`num_heads`, `height`, `width` and `sr_ratio` must be positive. Received: "
                f"num_heads={num_heads}, height={height}, width={width}, sr_ratio={sr_ratio}"
            )
        self.num_heads = num_heads
        self.height = height
        self.width = width
        self.sr_ratio = sr_ratio

    def build(self, input_shape):
        shape = self.compute_output_shape(input_shape)
        self.table = self.add_weight(name="table", shape=shape, initializer=Constant())

    def call(self, x):
        # A copy: JAX would hand out the variable's own memory, which the next step may reuse.
        return ops.copy(ops.convert_to_tensor(self.table, dtype=self.compute_dtype))

    def compute_output_shape(self, input_shape):
        keys = -(-self.height // self.sr_ratio) * -(-self.width // self.sr_ratio)
        return (1, self.num_heads, self.height * self.width, keys)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "height": self.height,
            "width": self.width,
            "sr_ratio": self.sr_ratio,
        }


@keras.saving.register_keras_serializable(package="keras_dualstream")
class OSRA(NestedCall, keras.layers.Layer):
    """Overlapping spatial reduction attention: all positions ask, a smaller map answers.

    - `y = BN(DW1×1(GELU(BN(DW x))))`, a depthwise convolution with kernel
      `sr_ratio + 3` and stride `sr_ratio`, so that neighbouring patches overlap;
      `y = x` for `sr_ratio=1`;
    - `y = y + DW3×3(y)`;
    - `z = softmax(q kᵀ / √d + B) v` with `q = Linear(x)`, `k, v = Linear(y)` and
      a position bias `B`, resized to the map where it was made for another.

    Args:
        num_heads: int. Heads; divides the channels. Defaults to `1`.
        sr_ratio: int. How many times smaller the answering map is. Defaults to `1`.
        overlapping: bool. Whether the reduction's patches overlap; otherwise its
            kernel is `sr_ratio` (paper's ablation). Defaults to `True`.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`.
        position_bias: float tensor `(1, num_heads, queries, keys)` as
            `PositionBias` gives it, or `None`.
        training: bool. Whether batch normalisation uses the batch's statistics.

    Returns:
        Tensor of the shape of `x`.

    Raises:
        ValueError: if an argument is below 1, `num_heads` does not divide the
            channels, or the bias is of another number of heads.

    Example:

    >>> y = OSRA(num_heads=2, sr_ratio=4)(keras.ops.ones((2, 14, 10, 24)))
    >>> tuple(y.shape)
    (2, 14, 10, 24)

    Reference:
        Lou et al., "TransXNet", eq. 4-6 (2025), https://arxiv.org/abs/2310.19380
    """

    def __init__(self, num_heads=1, sr_ratio=1, overlapping=True, **kwargs):
        super().__init__(**kwargs)
        if min(num_heads, sr_ratio) < 1:
            raise ValueError(
                f"`num_heads` and `sr_ratio` must be at least 1. Received: num_heads={num_heads}, sr_ratio={sr_ratio}"
            )
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.overlapping = overlapping

    def build(self, x_shape, position_bias_shape=None):
        channels = x_shape[-1]
        check_heads(self.num_heads, channels)
        if position_bias_shape is not None and position_bias_shape[1] != self.num_heads:
            raise ValueError(
                f"`position_bias` must have {self.num_heads} heads. Received: shape {tuple(position_bias_shape)}"
            )
        policy = self.dtype_policy
        map_shape = (None, None, None, channels)
        self.query = linear(channels, "query", policy)
        self.key_value = linear(2 * channels, "key_value", policy)
        if self.sr_ratio > 1:
            kernel_size, padding = self.sr_ratio, "same"
            if self.overlapping:
                # One zero less behind where the kernel is even, so that the map has ⌈size / sr_ratio⌉ positions always.
                before = (self.sr_ratio + 3) // 2
                kernel_size, padding = self.sr_ratio + 3, ((before, self.sr_ratio + 2 - before),) * 2
            self.reduce = depthwise(kernel_size, "reduce", policy, padding, strides=self.sr_ratio, use_bias=False)
            self.reduce_norm = batch_normalization("reduce_norm", policy)
            self.refine = depthwise(1, "refine", policy, "valid", use_bias=False)
            self.refine_norm = batch_normalization("refine_norm", policy)
            for layer in (self.reduce, self.reduce_norm, self.refine, self.refine_norm):
                layer.build(map_shape)
        self.local = depthwise(3, "local", policy, residual=True)
        for layer in (self.query, self.key_value, self.local):
            layer.build(map_shape)
        keep_frozen(self)

    def call(self, x, position_bias=None, training=None):
        y = x
        if self.sr_ratio > 1:
            y = gelu(normalized(self.reduce_norm, self.reduce, x, training))
            y = normalized(self.refine_norm, self.refine, y, training)
        y = self.local(y)
        key, value = ops.split(map_to_tokens(self.key_value(y)), 2, axis=-1)
        query = map_to_tokens(self.query(x))
        tokens = position_biased_attention(query, key, value, self.num_heads, position_bias, remat=bool(training))
        return tokens_to_map(tokens, like=x)

    def compute_output_shape(self, x_shape, position_bias_shape=None):
        return x_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "sr_ratio": self.sr_ratio,
            "overlapping": self.overlapping,
        }
