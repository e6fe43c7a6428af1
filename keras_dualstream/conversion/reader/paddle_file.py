"""Files of `paddle.save`: one pickle of names and NumPy arrays."""

from keras_dualstream.conversion.reader.stored import BFLOAT16
from keras_dualstream.conversion.reader.stored import StoredArray

# What Paddle adds to the tensors.
NAMES_OF_PARAMETERS = "StructuredToParameterName@@"
SLICES = "UnpackBigParamInfor@@"


def paddle_tensors(tree):
    """The object of a pickle of `paddle.save`, its tensors as `StoredArray`s under their names.

    Args:
        tree: what `load_pickle` returned.

    Raises:
        ValueError: if it has tensors in pieces.
    """
    if not isinstance(tree, dict):
        raise ValueError("its pickle holds no dict")
    if SLICES in tree:
        raise ValueError("Paddle has cut its largest tensors in slices; save it with `protocol=4`")
    return {key: _tensor(value) for key, value in tree.items() if key != NAMES_OF_PARAMETERS}


def _tensor(value):
    # Inside another dict Paddle pickles a tensor as its name and its array.
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], StoredArray):
        value = value[1]
    if isinstance(value, dict):
        return {key: _tensor(item) for key, item in value.items() if not isinstance(item, dict)}
    # Paddle has no unsigned 16-bit integers; it keeps bfloat16 in them.
    if isinstance(value, StoredArray) and value.dtype is not None and value.dtype.name in ("u2", "uint16"):
        value.dtype.name = BFLOAT16
    return value
