"""Space to depth lays the pixels of every 2×2 block side by side, column by column."""

import numpy as np
import pytest
from helpers import to_numpy
from keras import ops

from keras_dualstream.ops.space_to_depth import space_to_depth


@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (1, 2, 8, 1)])
def test_blocks_go_column_by_column(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype("float32")
    expected = np.concatenate([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], axis=-1)
    np.testing.assert_array_equal(to_numpy(space_to_depth(ops.convert_to_tensor(x))), expected)
