"""Files of `paddle.save`: one pickle of names and NumPy arrays."""

from keras_dualstream.conversion.reader.stored import BFLOAT16
from keras_dualstream.conversion.reader.stored import StoredArray

# Where Paddle keeps tensors of more than 2^30 bytes in the older protocols of pickles.
SLICES = "UnpackBigParamInfor@@"


def check_paddle(tree):
    """Raises a `ValueError` where the object of a pickle of `paddle.save` has tensors in pieces."""
    if isinstance(tree, dict) and SLICES in tree:
        raise ValueError("Paddle has cut its largest tensors in slices; save it with `protocol=4`")


def paddle_tensor(value):
    """The `StoredArray` that `value` is for Paddle, or `None`."""
    # Inside another dict Paddle pickles a tensor as its name and its array.
    if isinstance(value, tuple) and len(value) == 2:
        value = value[1]
    if not isinstance(value, StoredArray):
        return None
    # Paddle has no unsigned 16-bit integers; it keeps bfloat16 in them.
    if value.dtype is not None and value.dtype.name in ("u2", "uint16"):
        value.dtype.name = BFLOAT16
    return value
