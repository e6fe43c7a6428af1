"""Learned scale of a residual branch."""

import keras

from keras_dualstream.layers.initializers import Constant
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.ops.linear import scale_and_shift


@keras.saving.register_keras_serializable(package="keras_dualstream")
class LayerScale(NestedCall, keras.layers.Layer):
    """Per-channel learned scale of a residual branch, `y = γ · x`, or `y = γ · x + β`.

    Args:
        initial_value: float. Starting value of every γ. Defaults to `1e-6`.
        use_bias: bool. Whether a learned β, 0 at first, is added. Defaults to `False`.

    Call arguments:
        x: float tensor `(batch, ..., channels)`.

    Returns:
        Tensor of the shape of `x`.

    Example:

    >>> y = LayerScale(0.1)(keras.ops.ones((2, 4, 4, 8)))
    >>> tuple(y.shape)
    (2, 4, 4, 8)

    Reference:
        Touvron et al., "Going deeper with Image Transformers", eq. 4 (2021).
    """

    def __init__(self, initial_value=1e-6, use_bias=False, **kwargs):
        super().__init__(**kwargs)
        self.initial_value = initial_value
        self.use_bias = use_bias
        self.supports_masking = True

    def build(self, input_shape):
        self.gamma = self.add_weight(name="gamma", shape=(input_shape[-1],), initializer=Constant(self.initial_value))
        self.beta = None
        if self.use_bias:
            self.beta = self.add_weight(name="beta", shape=(input_shape[-1],), initializer=Constant())

    def call(self, x):
        return x * self.gamma if self.beta is None else scale_and_shift(x, self.gamma, self.beta)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "initial_value": self.initial_value, "use_bias": self.use_bias}
