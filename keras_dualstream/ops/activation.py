"""Activations of a layer's own intermediate results.

On PyTorch they overwrite what they are given where no gradient is wanted: among
other maps a new one is often new memory, which the system clears page by page
(inference on one core, batch 8: DS-Net-S 776 ms instead of 832, DFvT-T 105 instead
of 106).
"""

import math

import keras
from keras import ops

from keras_dualstream.ops.compiler import converting_jax_to_tensorflow
from keras_dualstream.ops.pytorch_kernels import pytorch_gelu
from keras_dualstream.ops.pytorch_kernels import pytorch_silu
from keras_dualstream.ops.recompute import recomputed


def gelu(x):
    """`x · Φ(x)` with the normal distribution Φ, as the error function gives it.

    Args:
        x: float tensor that nothing else needs.

    Returns:
        Tensor of the shape and dtype of `x`.
    """
    if keras.config.backend() == "torch" and ops.is_tensor(x):
        return pytorch_gelu(x)
    if keras.config.backend() == "torch" or (keras.config.backend() == "jax" and _needs_erfc(x)):
        return ops.gelu(x, approximate=False)
    # TensorFlow's own goes through erfc with a float32 constant: 5e-9 off in float64, and no op of ONNX. LiteRT makes
    # its built-in GELU of either form. On JAX erfc takes twice as long as erf: 3.3 ms instead of 1.7 for
    # 8 × 28 × 28 × 512 on two cores, with gradients 3.9 instead of 1.8.
    return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))


def _needs_erfc(x):
    """Whether JAX must not take erf: `1 + erf` cancels in half precision, and TensorFlow lacks what erf becomes."""
    half = keras.backend.standardize_dtype(x.dtype) in ("float16", "bfloat16")
    return half or converting_jax_to_tensorflow()


def silu(x):
    """`x / (1 + e⁻ˣ)`.

    Args:
        x: float tensor that nothing else needs.

    Returns:
        Tensor of the shape and dtype of `x`.
    """
    if keras.config.backend() == "torch" and ops.is_tensor(x):
        return pytorch_silu(x)
    return recomputed(lambda x: x * (0.5 + 0.5 * ops.tanh(0.5 * x)))(x)
