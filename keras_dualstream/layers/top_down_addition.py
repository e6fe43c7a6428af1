"""The way down a feature pyramid: a coarse map is added to the next finer one."""

import keras
from keras import ops

from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.ops.resample import resize_nearest


@keras.saving.register_keras_serializable(package="keras_dualstream")
class TopDownAddition(NestedCall, keras.layers.Layer):
    """Adds a coarse map to a fine one, `y = fine + resize(coarse)`.

    The coarse map is resized to exactly the size of the fine one by nearest
    neighbour, so neither has to be a multiple of the other.

    Call arguments:
        fine: float tensor `(batch, height, width, channels)`.
        coarse: float tensor `(batch, coarse_height, coarse_width, channels)`.

    Returns:
        Tensor of the shape of `fine`.

    Raises:
        ValueError: if the maps have different channels.

    Example:

    >>> y = TopDownAddition()(keras.ops.ones((1, 5, 8, 4)), keras.ops.ones((1, 2, 4, 4)))
    >>> tuple(y.shape)
    (1, 5, 8, 4)

    Reference:
        Lin et al., "Feature Pyramid Networks for Object Detection", section 3
        (2017), https://arxiv.org/abs/1612.03144
    """

    def build(self, fine_shape, coarse_shape):
        if fine_shape[-1] != coarse_shape[-1]:
            raise ValueError(
                "The fine and the coarse map must have the same channels. "
                f"Received: {fine_shape[-1]} and {coarse_shape[-1]}"
            )

    def call(self, fine, coarse):
        return fine + resize_nearest(coarse, *ops.shape(fine)[1:3])

    def compute_output_shape(self, fine_shape, coarse_shape):
        return fine_shape

    def get_config(self):
        # Keras would otherwise look for the arguments itself and give up at a dtype policy.
        return super().get_config()
