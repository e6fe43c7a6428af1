"""Multi-head attention with the papers' fused projections."""

import keras
from keras import ops

from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.ops.attention import multi_head_attention


def check_heads(num_heads, channels):
    """Raises a `ValueError` unless the heads share the channels evenly."""
    if channels % num_heads:
        raise ValueError(
            f"`num_heads` must divide the channels of the input. Received: num_heads={num_heads}, channels={channels}"
        )


def attention_dropout(rate, dtype_policy):
    """The dropout of attention weights, which are in float32 under a mixed policy.

    Args:
        rate: float. Probability of dropping a weight.
        dtype_policy: dtype policy of the attention.

    Returns:
        A `Dropout` layer.

    Raises:
        ValueError: if `rate` is not in `[0, 1)`.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"`attention_dropout_rate` must be in [0, 1). Received: attention_dropout_rate={rate}")
    return keras.layers.Dropout(rate, name="attention_dropout", dtype=dtype_policy.variable_dtype)


class _MultiHead(NestedCall, keras.layers.Layer):
    """What both kinds of attention share: heads, dropout of the weights, and an optional output projection."""

    def __init__(self, num_heads, use_projection=True, attention_dropout_rate=0.0, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.use_projection = use_projection
        self.attention_dropout_rate = attention_dropout_rate
        self.attention_dropout = attention_dropout(attention_dropout_rate, self.dtype_policy)
        self.projection = None

    def _build_projection(self, input_shape):
        channels = input_shape[-1]
        check_heads(self.num_heads, channels)
        if self.use_projection:
            self.projection = self._linear(channels, "projection", input_shape)

    def _linear(self, units, name, input_shape):
        layer = linear(units, name, self.dtype_policy)
        layer.build(input_shape)
        return layer

    def _attend(self, query, key, value, training):
        dropout = self.attention_dropout if training and self.attention_dropout_rate > 0 else None
        output = multi_head_attention(query, key, value, self.num_heads, dropout=dropout)
        return output if self.projection is None else self.projection(output)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "use_projection": self.use_projection,
            "attention_dropout_rate": self.attention_dropout_rate,
        }


@keras.saving.register_keras_serializable(package="keras_dualstream")
class Attention(_MultiHead):
    """Multi-head attention of some tokens over others.

    `y = Linear(softmax(q kᵀ / √d) v)` with `q = Linear(x)` and
    `k, v = Linear(context)` fused into one linear layer.

    Args:
        num_heads: int. Number of heads; divides the channels.
        use_projection: bool. Whether an output projection follows the heads.
            Defaults to `True`.
        attention_dropout_rate: float. Rate at which training drops attention
            weights. Defaults to `0.0`.

    Call arguments:
        x: float tensor `(batch, queries, channels)`: the tokens that ask.
        context: float tensor `(batch, keys, channels)`: the tokens that answer.
        training: bool. Whether to drop attention weights.

    Returns:
        Tensor of the shape of `x`.

    Raises:
        ValueError: if `num_heads` does not divide the channels, or
            `attention_dropout_rate` is not in `[0, 1)`.

    Example:

    >>> pixels, semantics = keras.ops.ones((2, 49, 32)), keras.ops.ones((2, 4, 32))
    >>> tuple(Attention(num_heads=4)(semantics, pixels).shape)
    (2, 4, 32)

    Reference:
        Vaswani et al., "Attention Is All You Need", section 3.2 (2017).
    """

    def build(self, x_shape, context_shape):
        self._build_projection(x_shape)
        self.query = self._linear(x_shape[-1], "query", x_shape)
        self.key_value = self._linear(2 * x_shape[-1], "key_value", context_shape)
        keep_frozen(self)

    def call(self, x, context, training=None):
        key, value = ops.split(self.key_value(context), 2, axis=-1)
        return self._attend(self.query(x), key, value, training)

    def compute_output_shape(self, x_shape, context_shape):
        return x_shape


@keras.saving.register_keras_serializable(package="keras_dualstream")
class SelfAttention(_MultiHead):
    """Multi-head attention of tokens over themselves.

    `y = Linear(softmax(q kᵀ / √d) v)` with `q, k, v = Linear(x)` fused into one
    linear layer.

    Args:
        num_heads: int. Number of heads; divides the channels.
        use_projection: bool. Whether an output projection follows the heads.
            Defaults to `True`.
        attention_dropout_rate: float. Rate at which training drops attention
            weights. Defaults to `0.0`.

    Call arguments:
        x: float tensor `(batch, tokens, channels)`.
        training: bool. Whether to drop attention weights.

    Returns:
        Tensor of the shape of `x`.

    Raises:
        ValueError: if `num_heads` does not divide the channels, or
            `attention_dropout_rate` is not in `[0, 1)`.

    Example:

    >>> tuple(SelfAttention(num_heads=4)(keras.ops.ones((2, 9, 32))).shape)
    (2, 9, 32)

    Reference:
        Vaswani et al., "Attention Is All You Need", section 3.2 (2017).
    """

    def build(self, input_shape):
        self._build_projection(input_shape)
        self.query_key_value = self._linear(3 * input_shape[-1], "query_key_value", input_shape)
        keep_frozen(self)

    def call(self, x, training=None):
        return self._attend(*ops.split(self.query_key_value(x), 3, axis=-1), training)

    def compute_output_shape(self, input_shape):
        return input_shape
