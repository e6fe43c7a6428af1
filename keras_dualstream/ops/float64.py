"""Where Keras computes float64 in float32, the same in float64.

Keras' type promotion turns float64 into float32 on JAX and PyTorch, and its
TensorFlow attention and GELU hold float32 constants: a normalisation is then
off by 2e-7 instead of 4e-16.
"""

import math

import keras
from keras import ops


def is_float64(x):
    """Whether a tensor is of dtype float64."""
    return keras.backend.standardize_dtype(x.dtype) == "float64"


def exact_dtype(dtype):
    """The dtype to compute in what half precision would get wrong: float64 for float64, float32 for every other."""
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


def mean(x, axis, keepdims=False):
    """`keras.ops.mean`, in float64 for float64.

    Args:
        x: float tensor.
        axis: int or tuple of int.
        keepdims: bool. Whether the reduced axes stay, of size 1. Defaults to `False`.

    Returns:
        Tensor of the dtype of `x`.
    """
    if not is_float64(x):
        return ops.mean(x, axis=axis, keepdims=keepdims)
    axes = (axis,) if isinstance(axis, int) else axis
    count = math.prod(ops.shape(x)[i] for i in axes)
    return ops.sum(x, axis=axis, keepdims=keepdims) / ops.cast(count, "float64")
