"""Sums of products in half precision."""

import keras
from keras import ops

from keras_dualstream.ops.compiler import tensorflow_on_cpu


def is_full_precision(dtype):
    """Whether a dtype is float32 or float64."""
    return keras.backend.standardize_dtype(dtype) in ("float32", "float64")


def for_sums(x):
    """`x` as sums of products are to read it: in float32 where it is in half precision and TensorFlow sums on a CPU.

    So do the graphs that it exports there. Its depthwise kernel and its batches of
    products add up in the dtype they are given, so that attention scores of 128 channels
    in bfloat16 were 1.5% off; its matrix products cut results off to bfloat16 instead of
    rounding them, for twice the error. Kernels for CPUs that compute in half precision
    do neither, but TensorFlow does not tell which it has. The result is to be cast back.

    Args:
        x: float tensor or variable.

    Returns:
        Tensor.
    """
    half = keras.backend.standardize_dtype(x.dtype) in ("float16", "bfloat16")
    return ops.cast(x, "float32") if half and tensorflow_on_cpu() else x
