"""What a checkpoint needs to fit a model of other classes, image channels or pretraining size."""

import math

import numpy as np

from keras_dualstream.ops.float64 import exact_dtype
from keras_dualstream.ops.resample import bicubic_taps

# Of the images that every checkpoint was trained on.
RGB = 3

# As the original code of windowed attention names it; it makes smaller ones where the maps are smaller than the window.
WINDOW_TABLE = ".relative_position_bias_table"


def other_classes(model, family, tensors, shapes):
    """The tensors of the head that differ in the number of classes alone.

    Args:
        model: an `ImageClassifier` or a backbone.
        family: the model's `Family`.
        tensors: dict from names to the model's `Tensor`s.
        shapes: dict from names to the checkpoint's shapes.

    Returns:
        The names, and the checkpoint's number of classes; no names where the head fits, or where it differs
        otherwise.
    """
    if model is model.backbone:
        return [], None
    names = [
        name
        for name, tensor in tensors.items()
        if name.startswith(family.head_prefixes) and name in shapes and shapes[name] != tensor.shape
    ]
    classes = {shapes[name][:1] for name in names}
    fits = all((model.num_classes, *shapes[name][1:]) == tensors[name].shape for name in names)
    modules = {name.rpartition(".")[0] for name in names}
    whole = all(name in names for name in tensors if name.rpartition(".")[0] in modules)
    if not names or len(classes) != 1 or classes == {()} or not fits or not whole:
        return [], None
    return names, classes.pop()[0]


def is_stem(array, shape):
    """Whether `array` is a convolution of RGB images that fits `shape` but for its channels."""
    return (
        len(shape) == array.ndim == 4 and array.shape[1] == RGB != shape[1] and _without(array.shape) == _without(shape)
    )


def _without(shape):
    return (shape[0], *shape[2:])


def adapt_stem(array, channels):
    """A convolution of RGB images as one of images with other channels.

    One channel takes the sum of the three kernels, which gives grey images in
    RGB their old response; others take the three in turn, scaled by
    `3 / channels` to keep the size of the response.

    Args:
        array: array `(out, 3, height, width)`.
        channels: int.

    Returns:
        Array `(out, channels, height, width)`.
    """
    array = _exact(array)
    if channels == 1:
        return array.sum(axis=1, keepdims=True)
    return array[:, np.arange(channels) % RGB] * array.dtype.type(RGB / channels)


def is_position_table(name, array, shape, family):
    """Whether `array` is a table of the family that fits `shape` but for queries and keys."""
    return (
        name.startswith(family.position_tables) and array.ndim == 4 and array.shape[:2] == shape[:2] and array.size > 0
    )


def resize_table(array, queries, keys):
    """A position table resized as an image of queries by keys, bicubic as `resize_bicubic`.

    Args:
        array: array `(1, heads, table_queries, table_keys)`.
        queries: int.
        keys: int.

    Returns:
        Array `(1, heads, queries, keys)`.
    """
    dtype, array = _exact(array).dtype, array.astype("float64")
    for axis, size in ((2, queries), (3, keys)):
        positions, weights = bicubic_taps(array.shape[axis], size, "float64")
        rows = (size, 1) if axis == 2 else (size,)
        array = sum(np.take(array, positions[:, tap], axis) * weights[:, tap].reshape(rows) for tap in range(4))
    return array.astype(dtype)


def is_small_window_table(name, array, shape):
    """Whether `array` is a table of relative positions in a smaller window than that of `shape`."""
    if not name.endswith(WINDOW_TABLE) or array.ndim != 2 or array.shape[1:] != shape[1:]:
        return False
    side = math.isqrt(array.shape[0])
    return side**2 == array.shape[0] < shape[0] and side % 2 == 1


def centre_table(array, shape):
    """A table of relative positions in the middle of that of a larger window, where small maps read it.

    Args:
        array: array `((2 · window - 1)², heads)`.
        shape: pair of int, of the larger table.

    Returns:
        Array of that shape, zero around the middle.
    """
    (small, large), heads = (math.isqrt(rows) for rows in (array.shape[0], shape[0])), shape[1]
    around = (large - small) // 2
    grid = np.pad(array.reshape(small, small, heads), [(around, around), (around, around), (0, 0)])
    return grid.reshape(shape)


def _exact(array):
    """The array in float32, or in float64 if it is."""
    return array.astype(exact_dtype(array.dtype))
