"""DFvT's spatial module."""

import keras

from keras_dualstream.layers.block import Block
from keras_dualstream.layers.folding import normalized
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.pytorch_defaults import batch_normalization
from keras_dualstream.layers.pytorch_defaults import depthwise
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.ops.space_to_depth import space_to_depth
from keras_dualstream.ops.windows import fill_windows


@keras.saving.register_keras_serializable(package="keras_dualstream")
class SpatialModule(Block, keras.layers.Layer):
    """Spatial module: halves a map without losing a pixel, then mixes neighbours and channels.

    `y = BN(Linear(BN(DW3×3(space to depth of x))))`, no bias. Space to depth lays
    the pixels of every 2×2 block side by side, column by column; odd maps get a
    row or column of zeros.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`.
        training: bool. Whether batch normalisation uses the batch's statistics.

    Returns:
        Tensor `(batch, ⌈height / 2⌉, ⌈width / 2⌉, channels)`.

    Example:

    >>> tuple(SpatialModule()(keras.ops.ones((2, 7, 10, 8))).shape)
    (2, 4, 5, 8)

    Reference:
        Gao et al., "Doubly-Fused ViT", section 3.3 (2022), https://doi.org/10.1007/978-3-031-20050-2_43
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        options = {"dtype": self.dtype_policy}
        self.neighbours = depthwise(3, "neighbours", padding=1, use_bias=False, **options)
        self.neighbours_norm = batch_normalization("neighbours_norm", **options)
        self.norm = batch_normalization("norm", **options)

    def build(self, input_shape):
        channels = input_shape[-1]
        self.reduce = linear(channels, "reduce", self.dtype_policy, use_bias=False)
        for layer in (self.neighbours, self.neighbours_norm, self.reduce):
            layer.build((None, None, None, 4 * channels))
        self.norm.build((None, None, None, channels))
        keep_frozen(self)

    def call(self, x, training=None):
        blocks = space_to_depth(fill_windows(x, 2))
        y = normalized(self.neighbours_norm, self.neighbours, blocks, training)
        return normalized(self.norm, self.reduce, y, training)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        return (batch, *(None if size is None else -(-size // 2) for size in (height, width)), channels)

    def get_config(self):
        # Keras would otherwise look for the arguments itself and give up at a dtype policy.
        return super().get_config()
