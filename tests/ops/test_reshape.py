"""Tensors and variables in another shape."""

import keras
import numpy as np
import pytest
from helpers import to_numpy
from keras import ops

from keras_dualstream.ops.reshape import reshape

VALUES = np.arange(24, dtype="float32").reshape(2, 3, 4)


@pytest.mark.parametrize("make", [ops.convert_to_tensor, keras.Variable, np.asarray])
@pytest.mark.parametrize("shape", [(6, 4), (-1,), [2, -1, 2], (np.int64(4), 6)])
def test_as_numpy(make, shape):
    y = reshape(make(VALUES), shape)
    assert ops.is_tensor(y)
    np.testing.assert_array_equal(to_numpy(y), VALUES.reshape(shape))


def test_shapes_are_known_before_there_are_values():
    assert reshape(keras.KerasTensor((None, 3, 4)), (-1, 12)).shape == (None, 12)
