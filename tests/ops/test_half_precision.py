"""Products of half precision are summed exactly, and rounded once."""

import keras
import numpy as np
import pytest
from helpers import relative_error
from helpers import to_numpy
from keras import ops

from keras_dualstream.ops.attention import multi_head_attention
from keras_dualstream.ops.linear import linear

pytestmark = pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="what TensorFlow's kernels do not do")


def halves(dtype, *shapes):
    """Random tensors of the dtype, and what they hold as float64 arrays."""
    rng = np.random.default_rng(0)
    tensors = [ops.convert_to_tensor(rng.standard_normal(shape), dtype=dtype) for shape in shapes]
    return tensors, [to_numpy(ops.cast(x, "float32")).astype("float64") for x in tensors]


# The error of rounding the exact result: 0.0017 and 0.0002.
BOUNDS = pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.0018), ("float16", 0.00025)])


@BOUNDS
def test_linear(dtype, bound):
    tensors, (x, kernel) = halves(dtype, (64, 512), (512, 32))
    y = linear(*tensors)
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    assert relative_error(ops.cast(y, "float32"), x @ kernel) < bound


@BOUNDS
def test_attention(dtype, bound):
    tensors, (query, key, value) = halves(dtype, (2, 9, 64), (2, 11, 64), (2, 11, 64))
    y = multi_head_attention(*tensors, num_heads=1)
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    exponentials = np.exp(query @ key.swapaxes(1, 2) / 8)
    expected = exponentials / exponentials.sum(-1, keepdims=True) @ value
    assert relative_error(ops.cast(y, "float32"), expected) < bound
