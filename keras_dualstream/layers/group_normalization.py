"""Normalisation over all positions and channels of a sample."""

import keras
from keras import ops

from keras_dualstream.layers.initializers import Constant
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.ops.float64 import exact_dtype
from keras_dualstream.ops.normalization import group_normalization


@keras.saving.register_keras_serializable(package="keras_dualstream")
class GroupNormalization(NestedCall, keras.layers.Layer):
    """Group normalisation with one group, `y = (x - μ) / √(σ² + ε) · γ + β`.

    μ and σ² are taken over all positions and channels of a sample, γ and β are
    per channel. Keras' own layer computes the same, but cannot be exported from
    PyTorch to LiteRT and leaves float64; the statistics are in float32 here
    whatever the policy, but for float64.

    Args:
        epsilon: float. ε. Defaults to `1e-5`.

    Call arguments:
        x: float tensor `(batch, ..., channels)`.

    Returns:
        Tensor of the shape of `x`.

    Example:

    >>> y = GroupNormalization()(keras.ops.ones((2, 5, 7, 4)))
    >>> tuple(y.shape)
    (2, 5, 7, 4)

    Reference:
        Wu & He, "Group Normalization", eq. 1-4 (2018).
    """

    def __init__(self, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        self.gamma = self.add_weight(name="gamma", shape=(input_shape[-1],), initializer=Constant(1.0))
        self.beta = self.add_weight(name="beta", shape=(input_shape[-1],), initializer=Constant())

    def call(self, x):
        dtype = exact_dtype(self.compute_dtype)
        x, gamma, beta = (ops.cast(each, dtype) for each in (x, self.gamma, self.beta))
        return ops.cast(group_normalization(x, gamma, beta, self.epsilon), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}
