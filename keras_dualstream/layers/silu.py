"""SiLU as a layer of a model."""

import keras

from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.ops.activation import silu


@keras.saving.register_keras_serializable(package="keras_dualstream")
class SiLU(NestedCall, keras.layers.Layer):
    """`x / (1 + e⁻ˣ)`, as `keras.layers.Activation("silu")`, of which a training step on JAX keeps only the argument.

    Call arguments:
        x: float tensor of any shape.

    Returns:
        Tensor of the shape of `x`.

    Example:

    >>> tuple(SiLU()(keras.ops.ones((2, 7, 9, 4))).shape)
    (2, 7, 9, 4)

    Reference:
        Elfwing et al., "Sigmoid-Weighted Linear Units", eq. 3 (2018).
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.built = True

    def call(self, x):
        # Other outputs of a model may be what comes in.
        return silu(x, overwrite=False)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        # Keras would otherwise look for the arguments itself and give up at a dtype policy.
        return super().get_config()
