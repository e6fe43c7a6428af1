"""Maps cut into windows and put together again."""

import numpy as np
from keras import ops

from keras_dualstream.ops.constants import remembered
from keras_dualstream.ops.reshape import reshape

# Leaves nothing of a padded key after the softmax, and is a number in float16.
PADDED = -3e4

# What the published networks add for keys that are no neighbours.
FOREIGN = -100.0


def partition(x, window):
    """Cuts a map into windows, row by row.

    Args:
        x: tensor `(batch, height, width, channels)` of whole windows.
        window: int or scalar tensor. Rows and columns of a window.

    Returns:
        Tensor `(batch · windows, window · window, channels)`.
    """
    _, _, width, channels = ops.shape(x)
    # Four axes at a time: LiteRT transposes no more with its built-in ops.
    x = reshape(x, (-1, window, width // window, window * channels))
    return reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, window * window, channels))


def merge(windows, window, height, width):
    """Puts the windows of `partition` together again.

    Args:
        windows: tensor `(batch · windows, window · window, channels)`.
        window: int or scalar tensor. Rows and columns of a window.
        height: int or scalar tensor. Rows of the map.
        width: int or scalar tensor. Columns of the map.

    Returns:
        Tensor `(batch, height, width, channels)`.
    """
    channels = windows.shape[-1]
    x = reshape(windows, (-1, width // window, window, window * channels))
    return reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, height, width, channels))


def fill_windows(x, window):
    """Adds rows of zeros below and columns to the right of a map until it is whole windows.

    Args:
        x: tensor `(batch, height, width, channels)`.
        window: int or scalar tensor.

    Returns:
        Tensor `(batch, height', width', channels)`; `x` itself where it is known to be whole windows.
    """
    _, height, width, channels = ops.shape(x)
    # Written so that it is right in ONNX too, where the remainder of a negative number is negative.
    bottom, right = ((window - size % window) % window for size in (height, width))
    if _known(bottom, right) and bottom == right == 0:
        return x
    x = ops.pad(x, [(0, 0), (0, bottom), (0, right), (0, 0)])
    # TensorFlow forgets the channels when it pads by sizes unknown while tracing.
    return reshape(x, (-1, height + bottom, width + right, channels))


def roll(x, shift):
    """Moves a map up and to the left, or back with a negative shift; what leaves it comes back at the other end.

    Args:
        x: tensor `(batch, height, width, channels)`.
        shift: int or scalar tensor. Rows and columns to move by.

    Returns:
        Tensor of the shape of `x`.
    """
    if _known(shift) and shift == 0:
        return x
    # `ops.roll` has no counterpart among LiteRT's built-in ops.
    x = ops.concatenate([x[:, shift:], x[:, :shift]], axis=1)
    return ops.concatenate([x[:, :, shift:], x[:, :, :shift]], axis=2)


def window_and_shift(height, width, window_size, shift_size):
    """The window and shift that suit a map.

    A map no larger than the window in one direction has windows of its smaller
    side, and nothing shifts.

    Args:
        height: int or scalar tensor. Rows of the map.
        width: int or scalar tensor. Columns of the map.
        window_size: int. Largest window.
        shift_size: int. Shift of larger maps.

    Returns:
        Two ints, or scalar tensors where a side is unknown while tracing.
    """
    if _known(height, width):
        small = min(height, width) <= window_size
        return (min(height, width), 0) if small else (window_size, shift_size)
    side = ops.minimum(height, width)
    # Known to be 0, no shift costs nothing.
    shift = ops.where(side <= window_size, 0, shift_size) if shift_size else 0
    return ops.minimum(side, window_size), shift


def window_mask(x, window, shift):
    """What keeps a window's positions from attending to padding and to positions that are no neighbours.

    Args:
        x: tensor `(batch, height, width, channels)` before `fill_windows` and `roll`.
        window: int or scalar tensor.
        shift: int or scalar tensor.

    Returns:
        Tensor `(batch · windows, 1, 1 or window², window²)` to add to the
        scores, or `None` where nothing is padded and nothing shifts.
    """
    ones = ops.ones_like(x[..., :1])
    inside = fill_windows(ones, window)
    mask = None
    if inside is not ones:
        mask = (1 - _keys(roll(inside, shift), window)) * PADDED
    if not (_known(shift) and shift == 0):
        _, height, width, _ = ops.shape(inside)
        region = _keys(_regions(height, width, window, shift, x.dtype) + ops.zeros_like(inside), window)
        foreign = ops.cast(ops.not_equal(region, ops.transpose(region, (0, 1, 3, 2))), x.dtype) * FOREIGN
        mask = foreign if mask is None else mask + foreign
    return mask


def _keys(x, window):
    """A map of one channel as `(batch · windows, 1, 1, window²)`."""
    return reshape(partition(x, window), (-1, 1, 1, window * window))


def _regions(height, width, window, shift, dtype):
    """A number for each of the up to nine regions of a rolled map, `(1, height, width, 1)`.

    Positions that were at opposite ends of the map meet `shift` rows (and
    columns) before the end, inside the last windows.
    """
    rows, columns = (
        ops.cast(indices >= size - window, dtype) + ops.cast(indices >= size - shift, dtype)
        for size, indices in ((height, _indices(height)), (width, _indices(width)))
    )
    return reshape(3 * rows[:, None] + columns[None], (1, height, width, 1))


@remembered
def relative_position_index(window_size):
    """Which entry of a table of relative positions every pair of a window's positions has.

    Args:
        window_size: int. Rows and columns of the window.

    Returns:
        NumPy array `(window_size,) * 4` of indices into the `(2 · window_size - 1)²`
        offsets, row by row, for the row and column of one position and of the
        other. Cut to the first `w` of each, it is the index of windows of `w`.
    """
    row, column, other_row, other_column = np.ogrid[(slice(window_size),) * 4]
    row_offset, column_offset = row - other_row + window_size - 1, column - other_column + window_size - 1
    return (row_offset * (2 * window_size - 1) + column_offset).astype("int32")


def _known(*sizes):
    return all(isinstance(size, int) for size in sizes)


def _indices(size):
    return ops.convert_to_tensor(np.arange(size, dtype="int32")) if _known(size) else ops.arange(size, dtype="int32")
