"""Self-attention inside windows of a map."""

import numbers

import keras
from keras import ops

from keras_dualstream.layers.attention import check_heads
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.initializers import linear_initializer
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.ops.attention import multi_head_attention
from keras_dualstream.ops.reshape import reshape
from keras_dualstream.ops.windows import fill_windows
from keras_dualstream.ops.windows import merge
from keras_dualstream.ops.windows import partition
from keras_dualstream.ops.windows import relative_position_index
from keras_dualstream.ops.windows import roll
from keras_dualstream.ops.windows import window_and_shift
from keras_dualstream.ops.windows import window_mask


@keras.saving.register_keras_serializable(package="keras_dualstream")
class WindowAttention(NestedCall, keras.layers.Layer):
    """Multi-head self-attention inside windows, with a bias per relative position.

    `y = Linear(softmax(q kᵀ / √d + B) v)` in every window on its own. With a
    shift the windows start `shift_size` rows and columns further, and what lies
    on either side of the map's end attends only to its own side.

    A map that is no whole number of windows is padded right and bottom; what is
    padded is never attended to. A map no larger than the window in one direction
    has windows of its smaller side and no shift; they read the middle of the
    table of biases.

    Args:
        num_heads: int. Heads; divides the channels.
        window_size: int. Rows and columns of a window. Defaults to `7`.
        shift_size: int, smaller than `window_size`. Defaults to `0`.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`.

    Returns:
        Tensor of the shape of `x`.

    Raises:
        ValueError: if `num_heads` does not divide the channels, or a size is out of its range.

    Example:

    >>> y = WindowAttention(num_heads=2)(keras.ops.ones((2, 14, 10, 24)))
    >>> tuple(y.shape)
    (2, 14, 10, 24)

    Reference:
        Liu et al., "Swin Transformer", section 3.2 (2021).
    """

    def __init__(self, num_heads, window_size=7, shift_size=0, **kwargs):
        super().__init__(**kwargs)
        whole = all(isinstance(value, numbers.Integral) for value in (num_heads, window_size, shift_size))
        if not whole or min(num_heads, window_size) < 1:
            raise ValueError(
                "`num_heads` and `window_size` must be int and at least 1. "
                f"Received: num_heads={num_heads}, window_size={window_size}"
            )
        if not 0 <= shift_size < window_size:
            raise ValueError(
                "`shift_size` must be at least 0 and smaller than `window_size`. "
                f"Received: shift_size={shift_size}, window_size={window_size}"
            )
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift_size = shift_size

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
        _, height, width, _ = ops.shape(x)
        window, shift = window_and_shift(height, width, self.window_size, self.shift_size)
        bias, mask = self._relative_bias(window), window_mask(x, window, shift)
        bias = bias if mask is None else bias + mask
        whole = roll(fill_windows(x, window), shift)
        query, key, value = ops.split(self.query_key_value(partition(whole, window)), 3, axis=-1)
        windows = self.projection(multi_head_attention(query, key, value, self.num_heads, bias))
        y = merge(windows, window, *ops.shape(whole)[1:3])
        return roll(y, -shift)[:, :height, :width]

    def _relative_bias(self, window):
        """`(1, num_heads, window², window²)` from the middle of the table."""
        index = relative_position_index(self.window_size)
        index = index if isinstance(window, int) else ops.convert_to_tensor(index)
        index = index[:window, :window, :window, :window]
        bias = ops.take(self.bias_table, reshape(index, (-1,)), axis=0)
        return reshape(ops.transpose(bias), (1, self.num_heads, window * window, window * window))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "window_size": self.window_size,
            "shift_size": self.shift_size,
        }
