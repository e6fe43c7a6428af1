"""How Dual-ViT's semantic tokens begin."""

import keras
from keras import ops

from keras_dualstream.layers.float64 import LayerNormalization
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.initializers import linear_initializer
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.ops.attention import multi_head_attention
from keras_dualstream.ops.average_pool import average_pool
from keras_dualstream.ops.float64 import mean
from keras_dualstream.ops.resample import resize_bicubic
from keras_dualstream.ops.reshape import reshape
from keras_dualstream.ops.softmax import softmax
from keras_dualstream.ops.tokens import map_to_tokens


@keras.saving.register_keras_serializable(package="keras_dualstream")
class SemanticTokens(NestedCall, keras.layers.Layer):
    """Condenses a feature map into the semantic tokens of Dual-ViT.

    The map is average-pooled into `p`, one token per window. Learned queries,
    a `grid_size × grid_size` grid resized bicubically to the pooled one, gather
    `s = softmax(Linear(LN(q)) kᵀ / √channels) v` from `k, v = Linear(p)`. Both
    are fused channel by channel: with `e` the mean over tokens of `s + p` and
    `w = softmax(Linear(ReLU(Linear(e))))` over the pair,
    `z = LN(w₀ · s + w₁ · p)`.

    Args:
        grid_size: int. Side of the grid of learned queries. Defaults to `8`.
        pool_size: int. Side and stride of the pooling window; the map must be
            at least as large. Defaults to `7`.
        epsilon: float. Epsilon of the layer normalisations. Defaults to `1e-5`.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`.

    Returns:
        Tensor `(batch, ⌊height / pool_size⌋ · ⌊width / pool_size⌋, channels)`.

    Raises:
        ValueError: if the map is smaller than the pooling window.

    Example:

    >>> tuple(SemanticTokens()(keras.ops.ones((1, 56, 28, 16))).shape)
    (1, 32, 16)

    Reference:
        Yao et al., "Dual Vision Transformer", section 3.2 (2023).
    """

    def __init__(self, grid_size=8, pool_size=7, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.grid_size = grid_size
        self.pool_size = pool_size
        self.epsilon = epsilon
        options = {"dtype": self.dtype_policy}
        self.query_norm = LayerNormalization(epsilon=epsilon, name="query_norm", **options)
        self.norm = LayerNormalization(epsilon=epsilon, name="norm", **options)

    def build(self, input_shape):
        channels = input_shape[-1]
        tokens_shape = self.compute_output_shape(input_shape)
        self.queries = self.add_weight(
            name="queries", shape=(self.grid_size**2, channels), initializer=linear_initializer()
        )
        self.query_norm.build(tokens_shape)
        self.query = self._linear(channels, "query", tokens_shape)
        self.key_value = self._linear(2 * channels, "key_value", tokens_shape)
        self.squeeze = self._linear(channels, "squeeze", (None, channels), activation="relu")
        self.select = self._linear(2 * channels, "select", (None, channels))
        self.norm.build(tokens_shape)
        keep_frozen(self)

    def _linear(self, units, name, input_shape, activation=None):
        layer = linear(units, name, self.dtype_policy, activation=activation)
        layer.build(input_shape)
        return layer

    def call(self, x):
        self._check_size(*x.shape[1:3])
        pooled = average_pool(x, (self.pool_size, self.pool_size))
        tokens = map_to_tokens(pooled)
        key, value = ops.split(self.key_value(tokens), 2, axis=-1)
        query = self.query(self.query_norm(self._grid_queries(pooled)))
        gathered = multi_head_attention(ops.broadcast_to(query, ops.shape(tokens)), key, value, num_heads=1)
        weights = self.select(self.squeeze(mean(gathered + tokens, axis=1)))
        weights = softmax(reshape(weights, (-1, 2, 1, tokens.shape[-1])), axis=1)
        return self.norm(weights[:, 0] * gathered + weights[:, 1] * tokens)

    def _grid_queries(self, pooled):
        """The learned queries, one for each cell of the pooled grid: `(1, tokens, channels)`."""
        height, width = ops.shape(pooled)[1:3]
        queries = ops.convert_to_tensor(self.queries)
        # The static shape: sizes that TensorFlow knows only at run time cannot be compared while tracing.
        if tuple(pooled.shape[1:3]) != (self.grid_size, self.grid_size):
            grid = reshape(queries, (self.grid_size, self.grid_size, -1))
            queries = reshape(resize_bicubic(grid, height, width), (-1, pooled.shape[-1]))
        return queries[None]

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        self._check_size(height, width)
        if height is None or width is None:
            return (batch, None, channels)
        return (batch, (height // self.pool_size) * (width // self.pool_size), channels)

    def _check_size(self, height, width):
        if any(size is not None and size < self.pool_size for size in (height, width)):
            raise ValueError(
                f"The feature map must be at least {self.pool_size}x{self.pool_size} to be pooled into semantic "
                f"tokens (in Dual-ViT, images at least 25x25). Received: {height}x{width}"
            )

    def get_config(self):
        return {
            **super().get_config(),
            "grid_size": self.grid_size,
            "pool_size": self.pool_size,
            "epsilon": self.epsilon,
        }
