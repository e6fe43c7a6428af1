"""Self-attention inside windows of a map."""

import keras
from keras import ops

from keras_dualstream.layers.attention import check_heads
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.initializers import linear_initializer
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.ops.attention import multi_head_attention
from keras_dualstream.ops.windows import merge
from keras_dualstream.ops.windows import partition
from keras_dualstream.ops.windows import relative_position_index

# Leaves nothing of a padded key after the softmax, and is a number in float16.
MASKED = -3e4


@keras.saving.register_keras_serializable(package="keras_dualstream")
class WindowAttention(keras.layers.Layer):
    """Multi-head self-attention inside windows, with a bias per relative position.

    `y = Linear(softmax(q kᵀ / √d + B) v)` in every window on its own. A map that
    is no whole number of windows is padded right and bottom; what is padded is
    never attended to.

    Args:
        num_heads: int. Heads; divides the channels.
        window_size: int. Rows and columns of a window. Defaults to `7`.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`.

    Returns:
        Tensor of the shape of `x`.

    Raises:
        ValueError: if `num_heads` does not divide the channels.

    Example:

    >>> y = WindowAttention(num_heads=2)(keras.ops.ones((2, 14, 10, 24)))
    >>> tuple(y.shape)
    (2, 14, 10, 24)

    Reference:
        Liu et al., "Swin Transformer", section 3.2 (2021).
    """

    def __init__(self, num_heads, window_size=7, **kwargs):
        super().__init__(**kwargs)
        if min(num_heads, window_size) < 1:
            raise ValueError(
                "`num_heads` and `window_size` must be at least 1. "
                f"Received: num_heads={num_heads}, window_size={window_size}"
            )
        self.num_heads = num_heads
        self.window_size = window_size

    def build(self, input_shape):
        channels = input_shape[-1]
        check_heads(self.num_heads, channels)
        self.bias_table = self.add_weight(
            name="bias_table",
            shape=((2 * self.window_size - 1) ** 2, self.num_heads),
            initializer=linear_initializer(),
        )
        self.query_key_value = self._linear(3 * channels, "query_key_value", channels)
        self.projection = self._linear(channels, "projection", channels)
        keep_frozen(self)

    def _linear(self, units, name, channels):
        layer = linear(units, name, self.dtype_policy)
        layer.build((None, None, channels))
        return layer

    def call(self, x):
        window = (self.window_size, self.window_size)
        _, height, width, _ = ops.shape(x)
        # Written so that it is right in ONNX too, where the remainder of a negative number is negative.
        bottom, right = ((self.window_size - size % self.window_size) % self.window_size for size in (height, width))
        pads = [(0, 0), (0, bottom), (0, right), (0, 0)]
        bias = self._relative_bias(window)
        if not (isinstance(bottom, int) and isinstance(right, int) and bottom == right == 0):
            inside = partition(ops.pad(ops.ones_like(x[..., :1]), pads), window)
            bias = bias + ops.reshape((1 - inside) * MASKED, (-1, 1, 1, window[0] * window[1]))
            x = ops.pad(x, pads)
        query, key, value = ops.split(self.query_key_value(partition(x, window)), 3, axis=-1)
        windows = self.projection(multi_head_attention(query, key, value, self.num_heads, bias))
        return merge(windows, window, height + bottom, width + right)[:, :height, :width]

    def _relative_bias(self, window):
        index = relative_position_index(window)
        bias = ops.take(self.bias_table, index.ravel().astype("int32"), axis=0)
        bias = ops.reshape(bias, (1, *index.shape, self.num_heads))
        return ops.transpose(bias, (0, 3, 1, 2))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads, "window_size": self.window_size}
