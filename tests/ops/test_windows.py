"""Windows against plain loops."""

import keras
import numpy as np

from keras_dualstream.ops.windows import merge
from keras_dualstream.ops.windows import partition
from keras_dualstream.ops.windows import relative_position_index


def test_partition_lists_the_windows_row_by_row_and_merge_undoes_it():
    x = np.random.default_rng(0).standard_normal((2, 6, 8, 3)).astype("float32")
    windows = partition(keras.ops.convert_to_tensor(x), (3, 2))
    expected = [
        x[sample, top : top + 3, left : left + 2].reshape(6, 3)
        for sample in range(2)
        for top in (0, 3)
        for left in (0, 2, 4, 6)
    ]
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(windows), expected)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(merge(windows, (3, 2), 6, 8)), x)


def test_the_index_numbers_the_offsets_row_by_row():
    rows, columns = 3, 2
    index = relative_position_index((rows, columns))
    positions = [(row, column) for row in range(rows) for column in range(columns)]
    for query, (row, column) in enumerate(positions):
        for key, (other_row, other_column) in enumerate(positions):
            offset = (row - other_row + rows - 1) * (2 * columns - 1) + column - other_column + columns - 1
            assert index[query, key] == offset
    assert set(index.ravel()) == set(range((2 * rows - 1) * (2 * columns - 1)))
