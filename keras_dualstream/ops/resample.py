"""Resampling as interpolation matrices, in PyTorch's conventions."""

import keras
import numpy as np
from keras import ops

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
    rows = _bicubic_matrix(grid_height, height, x.dtype)
    columns = _bicubic_matrix(grid_width, width, x.dtype)
    # The tensor stands first: the other order fails in LiteRT with a dynamic batch.
    return ops.einsum("hjc,wj->hwc", ops.einsum("ijc,hi->hjc", x, rows), columns)


def _bicubic_matrix(size, new_size, dtype):
    """`(new_size, size)` weights; NumPy constants where the new size is known."""
    dtype = keras.backend.standardize_dtype(dtype)
    if isinstance(new_size, int):
        matrix = _bicubic_weights(size, np.arange(new_size), size / new_size, np)
        return ops.convert_to_tensor(matrix, dtype=dtype)
    scale = size / ops.cast(new_size, "float32")
    matrix = _bicubic_weights(size, ops.arange(0, new_size, dtype="float32"), scale, ops)
    return ops.cast(matrix, dtype)


def _bicubic_weights(size, outputs, scale, xp):
    centres = (outputs + 0.5) * scale - 0.5
    # Two taps beyond each edge can be reached; they read the edge itself.
    taps = np.arange(-2, size + 2)
    edges = np.eye(size)[np.clip(taps, 0, size - 1)]
    distance = xp.abs(centres[:, None] - taps[None].astype("float32"))
    a = BICUBIC_A
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    weights = xp.where(distance <= 1, near, xp.where(distance < 2, far, 0.0))
    return xp.matmul(weights, edges.astype(weights.dtype if xp is np else "float32"))
