"""Resampling as interpolation matrices, in PyTorch's conventions."""

import keras
import numpy as np
from keras import ops

from keras_dualstream.ops.average_pool import average_pool
from keras_dualstream.ops.compiler import exporting_to_litert
from keras_dualstream.ops.constants import remembered
from keras_dualstream.ops.float64 import exact_dtype
from keras_dualstream.ops.pytorch_kernels import pytorch_adaptive_average_pool2d

# PyTorch's bicubic kernel; Keras' and TensorFlow's resize use -0.5.
BICUBIC_A = -0.75


def resize_bicubic(x, height, width):
    """Bicubic resize of a grid as PyTorch's `interpolate` does it.

    Half-pixel centres (`align_corners=False`), no antialiasing, edges
    replicated, kernel parameter `a = -0.75`.

    Args:
        x: float tensor `(grid_height, grid_width, channels)` of static size.
        height: int or scalar tensor. Rows of the result.
        width: int or scalar tensor. Columns of the result.

    Returns:
        Tensor `(height, width, channels)`.
    """
    grid_height, grid_width, _ = x.shape
    rows = bicubic_matrix(grid_height, height, x.dtype)
    columns = bicubic_matrix(grid_width, width, x.dtype)
    # The tensor stands first: the other order fails in LiteRT with a dynamic batch.
    return ops.einsum("hjc,wj->hwc", ops.einsum("ijc,hi->hjc", x, rows), columns)


def bicubic_matrix(size, new_size, dtype):
    """The weights of a bicubic resize along one axis, in the conventions of `resize_bicubic`.

    Args:
        size: int. Positions along the axis.
        new_size: int or scalar tensor. Positions of the result.
        dtype: dtype of the weights.

    Returns:
        Tensor `(new_size, size)`, a constant where `new_size` is known.
    """
    dtype = keras.backend.standardize_dtype(dtype)
    if isinstance(new_size, int):
        return ops.convert_to_tensor(_known_bicubic_weights(size, new_size), dtype=dtype)
    exact = exact_dtype(dtype)
    scale = size / ops.cast(new_size, exact)
    matrix = _bicubic_weights(size, ops.cast(ops.arange(0, new_size, dtype="int32"), exact), scale, ops)
    return ops.cast(matrix, dtype)


@remembered
def _known_bicubic_weights(size, new_size):
    return _bicubic_weights(size, np.arange(new_size), size / new_size, np)


def _bicubic_weights(size, outputs, scale, xp):
    centres = (outputs + 0.5) * scale - 0.5
    # Two taps beyond each edge can be reached; they read the edge itself.
    taps = np.arange(-2, size + 2)
    edges = np.eye(size)[np.clip(taps, 0, size - 1)]
    exact = np.dtype(keras.backend.standardize_dtype(centres.dtype))
    distance = xp.abs(centres[:, None] - taps[None].astype(exact))
    a = BICUBIC_A
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    weights = xp.where(distance <= 1, near, xp.where(distance < 2, far, 0.0))
    return xp.einsum("ot,ts->os", weights, edges.astype(exact))


def bicubic_taps(size, new_size, dtype):
    """The four positions that every output of a bicubic resize reads along one axis, and their weights.

    In the conventions of `resize_bicubic`. Reading four positions costs
    `4 · new_size` products where the interpolation matrix costs `size · new_size`.

    Args:
        size: int. Positions along the axis.
        new_size: int or scalar tensor. Positions of the result.
        dtype: dtype of the weights.

    Returns:
        The pair `(positions, weights)` of shape `(new_size, 4)`: NumPy arrays
        where `new_size` is known, otherwise tensors.
    """
    dtype = keras.backend.standardize_dtype(dtype)
    if isinstance(new_size, int):
        xp, outputs = np, np.arange(new_size, dtype="int64")
    else:
        # LiteRT does not divide int64; elsewhere int32 would overflow for images above 1300 × 1300.
        whole = "int32" if exporting_to_litert() else "int64"
        xp, outputs, new_size = ops, ops.arange(0, new_size, dtype=whole), ops.cast(new_size, whole)
    # The centre (2i + 1) size / (2 new_size) - 1/2 in whole numbers: float32 would lose it on long axes.
    numerator, denominator = (2 * outputs + 1) * size - new_size, 2 * new_size
    first = numerator // denominator
    fraction = numerator - first * denominator
    exact = exact_dtype(dtype)
    fraction = fraction / denominator if xp is np else ops.cast(fraction, exact) / ops.cast(denominator, exact)
    positions = xp.stack([xp.clip(first + tap, 0, size - 1) for tap in (-1, 0, 1, 2)], axis=-1)
    a = BICUBIC_A
    distances = (1 + fraction, fraction, 1 - fraction, 2 - fraction)
    near = [((a + 2) * distance - (a + 3)) * distance**2 + 1 for distance in distances[1:3]]
    far = [((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a for distance in distances[::3]]
    weights = xp.stack([far[0], *near, far[1]], axis=-1)
    return positions, weights.astype(dtype) if xp is np else ops.cast(weights, dtype)


def resize_bilinear(x, height, width):
    """Bilinear resize of maps as PyTorch's `interpolate` does it.

    Half-pixel centres (`align_corners=False`), no antialiasing, edges replicated.

    Args:
        x: float tensor `(batch, height, width, channels)`.
        height: int or scalar tensor. Rows of the result.
        width: int or scalar tensor. Columns of the result.

    Returns:
        Tensor `(batch, height, width, channels)`.
    """
    _, rows, columns, _ = ops.shape(x)
    # The tensor stands first: the other order fails in LiteRT with a dynamic batch.
    x = ops.einsum("bhwc,oh->bowc", x, bilinear_matrix(rows, height, x.dtype))
    return ops.einsum("bowc,pw->bopc", x, bilinear_matrix(columns, width, x.dtype))


def bilinear_matrix(size, new_size, dtype):
    """The weights of a bilinear resize along one axis, in the conventions of `resize_bilinear`.

    Args:
        size: int or scalar tensor. Positions along the axis.
        new_size: int or scalar tensor. Positions of the result.
        dtype: dtype of the weights.

    Returns:
        Tensor `(new_size, size)`, a constant where both sizes are known.
    """
    dtype = keras.backend.standardize_dtype(dtype)
    if isinstance(size, int) and isinstance(new_size, int):
        return ops.convert_to_tensor(_known_bilinear_weights(size, new_size), dtype)
    exact = exact_dtype(dtype)
    positions, outputs = (ops.cast(ops.arange(0, count, dtype="int32"), exact) for count in (size, new_size))
    weights = _bilinear_weights(positions, outputs, ops.cast(size, exact), ops.cast(new_size, exact), ops)
    return ops.cast(weights, dtype)


@remembered
def _known_bilinear_weights(size, new_size):
    return _bilinear_weights(np.arange(size), np.arange(new_size), size, new_size, np)


def _bilinear_weights(positions, outputs, size, new_size, xp):
    # Distances times 2 · new_size are whole numbers, which float32 holds exactly up to 2²⁴; as fractions they would
    # lose it on long axes.
    centres = xp.maximum((2 * outputs + 1) * size - new_size, 0)
    centres = xp.minimum(centres, 2 * new_size * (size - 1))
    overlaps = 2 * new_size - xp.abs(centres[:, None] - 2 * new_size * positions[None])
    return xp.maximum(overlaps, 0) / (2 * new_size)


def resize_nearest(x, height, width):
    """Nearest-neighbour resize of maps as PyTorch's `interpolate` does it.

    Row `i` of the result is row `⌊i · old height / height⌋`, columns alike.

    Args:
        x: float tensor `(batch, height, width, channels)`.
        height: int or scalar tensor. Rows of the result.
        width: int or scalar tensor. Columns of the result.

    Returns:
        Tensor `(batch, height, width, channels)`.
    """
    _, rows, columns, _ = ops.shape(x)
    return _nearest_along(_nearest_along(x, 1, rows, height), 2, columns, width)


def _nearest_along(x, axis, size, new_size):
    if isinstance(size, int) and isinstance(new_size, int):
        # A repeat's gradient is a sum, where that of reading at indices is a scatter.
        if new_size % size == 0:
            return x if new_size == size else ops.repeat(x, new_size // size, axis=axis)
        return ops.take(x, np.arange(new_size) * size // new_size, axis=axis)
    return ops.take(x, ops.arange(0, new_size, dtype="int32") * size // new_size, axis=axis)


def adaptive_average_pool(x, height, width):
    """Average pooling to a grid of given size, as PyTorch's `adaptive_avg_pool2d`.

    Cell `i` of `K` averages the rows `⌊i·H/K⌋ … ⌈(i+1)·H/K⌉ - 1`, columns
    alike: cells overlap where `K` does not divide `H` and repeat rows where `H < K`.

    Args:
        x: float tensor `(batch, height, width, channels)`.
        height: int. Rows of the result.
        width: int. Columns of the result.

    Returns:
        Tensor `(batch, height, width, channels)`.
    """
    if keras.config.backend() == "torch":
        return pytorch_adaptive_average_pool2d(x, height, width)
    _, rows, columns, _ = ops.shape(x)
    if all(isinstance(size, int) and size % new == 0 for size, new in ((rows, height), (columns, width))):
        window = (rows // height, columns // width)
        return x if window == (1, 1) else average_pool(x, window)
    # The tensor stands first: the other order fails in LiteRT with a dynamic batch.
    x = ops.einsum("bhwc,oh->bowc", x, _pooling_matrix(rows, height, x))
    return ops.einsum("bowc,pw->bopc", x, _pooling_matrix(columns, width, x))


def _pooling_matrix(size, cells, like):
    """`(cells, size)` weights: one over the number of positions of a cell, inside it."""
    dtype = keras.backend.standardize_dtype(like.dtype)
    xp, positions = (np, np.arange(size)) if isinstance(size, int) else (ops, ops.arange(0, size, dtype="int32"))
    cell = np.arange(cells, dtype="int32")
    starts, stops = cell * size // cells, -(-(cell + 1) * size // cells)
    inside = xp.logical_and(positions[None] >= starts[:, None], positions[None] < stops[:, None])
    if xp is np:
        return ops.convert_to_tensor(inside / (stops - starts)[:, None], dtype=dtype)
    exact = exact_dtype(dtype)
    return ops.cast(ops.cast(inside, exact) / ops.cast(stops - starts, exact)[:, None], dtype)
