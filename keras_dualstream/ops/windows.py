"""Maps cut into windows and put together again."""

import numpy as np
from keras import ops


def partition(x, window):
    """Cuts a map into windows, row by row.

    Args:
        x: tensor `(batch, height, width, channels)` of whole windows.
        window: pair of int. Rows and columns of a window.

    Returns:
        Tensor `(batch · windows, window rows · window columns, channels)`.
    """
    _, _, width, channels = ops.shape(x)
    rows, columns = window
    # Four axes at a time: LiteRT transposes no more with its built-in ops.
    x = ops.reshape(x, (-1, rows, width // columns, columns * channels))
    return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, rows * columns, channels))


def merge(windows, window, height, width):
    """Puts the windows of `partition` together again.

    Args:
        windows: tensor `(batch · windows, window rows · window columns, channels)`.
        window: pair of int. Rows and columns of a window.
        height: int or scalar tensor. Rows of the map.
        width: int or scalar tensor. Columns of the map.

    Returns:
        Tensor `(batch, height, width, channels)`.
    """
    rows, columns = window
    channels = windows.shape[-1]
    x = ops.reshape(windows, (-1, width // columns, rows, columns * channels))
    return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, height, width, channels))


def relative_position_index(window):
    """Which entry of a table of relative positions every pair of a window's positions has.

    Args:
        window: pair of int. Rows and columns of a window.

    Returns:
        NumPy array `(positions, positions)` of indices into the
        `(2 · rows - 1) · (2 · columns - 1)` offsets, row by row.
    """
    rows, columns = window
    row, column = (grid.ravel() for grid in np.mgrid[:rows, :columns])
    row_offset = row[:, None] - row[None] + rows - 1
    column_offset = column[:, None] - column[None] + columns - 1
    return row_offset * (2 * columns - 1) + column_offset
