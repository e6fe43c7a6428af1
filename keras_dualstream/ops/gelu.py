"""The exact GELU."""

import math

import keras
from keras import ops


def gelu(x):
    """`x · Φ(x)` with the normal distribution Φ, as the error function gives it.

    Args:
        x: float tensor.

    Returns:
        Tensor of the shape and dtype of `x`.
    """
    if keras.config.backend() == "tensorflow":
        # TensorFlow's own goes through erfc with a float32 constant: 5e-9 off in float64, and no op of ONNX.
        # LiteRT makes its built-in GELU of either form.
        return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))
    return ops.gelu(x, approximate=False)
