"""Windows against plain loops."""

import keras
import numpy as np
import pytest

from keras_dualstream.ops.windows import merge
from keras_dualstream.ops.windows import partition
from keras_dualstream.ops.windows import relative_position_index
from keras_dualstream.ops.windows import roll
from keras_dualstream.ops.windows import window_and_shift


def test_partition_lists_the_windows_row_by_row_and_merge_undoes_it():
    x = np.random.default_rng(0).standard_normal((2, 6, 9, 4)).astype("float32")
    windows = partition(keras.ops.convert_to_tensor(x), 3)
    expected = [
        x[sample, top : top + 3, left : left + 3].reshape(9, 4)
        for sample in range(2)
        for top in (0, 3)
        for left in (0, 3, 6)
    ]
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(windows), expected)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(merge(windows, 3, 6, 9)), x)


@pytest.mark.parametrize("shift", [0, 2, -2])
def test_roll_moves_up_and_left(shift):
    x = np.random.default_rng(0).standard_normal((2, 6, 9, 4)).astype("float32")
    found = keras.ops.convert_to_numpy(roll(keras.ops.convert_to_tensor(x), shift))
    np.testing.assert_array_equal(found, np.roll(x, (-shift, -shift), axis=(1, 2)))


@pytest.mark.parametrize("window", [3, 2])
def test_the_index_numbers_the_offsets_and_small_windows_read_the_middle(window):
    index = relative_position_index(3)[:window, :window, :window, :window]
    for row, column, other_row, other_column in np.ndindex(*(window,) * 4):
        offset = (row - other_row + 2) * 5 + column - other_column + 2
        assert index[row, column, other_row, other_column] == offset
    if window == 3:
        assert set(index.ravel()) == set(range(25))


@pytest.mark.parametrize(
    ("size", "expected"), [((8, 9), (7, 3)), ((7, 9), (7, 0)), ((9, 5), (5, 0)), ((1, 1), (1, 0)), ((8, 7), (7, 0))]
)
def test_small_maps_have_small_windows_that_stay(size, expected):
    assert window_and_shift(*size, 7, 3) == expected
    tensors = (keras.ops.convert_to_tensor(side) for side in size)
    assert tuple(int(value) for value in window_and_shift(*tensors, 7, 3)) == expected
