"""Files of safetensors, by its own library."""

import dataclasses

from keras_dualstream.conversion.reader.stored import BFLOAT16
from keras_dualstream.conversion.reader.stored import decoded

# Its names of dtypes to the bytes of an element as an array.
ITEM_SIZES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 4},
    **{"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8},
}


@dataclasses.dataclass(frozen=True)
class StoredSlice:
    """A tensor of a file that is open.

    Args:
        file: what `safetensors.safe_open` returned.
        name: str.
        dtype: str, one of `ITEM_SIZES`.
        shape: tuple of int.
    """

    file: object
    name: str
    dtype: str
    nbytes: int

    def read(self, storages=None):
        """The array.

        Args:
            storages: unused; `StoredTensor.read` has the same argument.
        """
        array = self.file.get_tensor(self.name)
        if self.dtype == "BF16":
            # A type of ml_dtypes, which Keras has imported.
            array = decoded(array.reshape(-1).view("uint8"), BFLOAT16).reshape(array.shape)
        return array


def safetensors_tensors(path):
    """The tensors of a `.safetensors` file.

    Args:
        path: str.

    Returns:
        Dict from names to `StoredSlice`s.

    Raises:
        ImportError: if safetensors is not installed.
        ValueError: if the file is damaged or has a dtype that NumPy lacks.
    """
    try:
        from safetensors import SafetensorError
        from safetensors import safe_open
    except ImportError as error:
        raise ImportError(
            "Reading `.safetensors` files needs safetensors: pip install 'keras_dualstream[convert]'"
        ) from error
    tensors = {}
    try:
        file = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"safetensors finds it damaged: {error}") from error
    for name in file.keys():  # noqa: SIM118
        part = file.get_slice(name)
        if part.get_dtype() not in ITEM_SIZES:
            raise ValueError(f"its tensor {name[:80]!r} is of {part.get_dtype()}, which is not supported")
        tensors[name] = StoredSlice(file, name, part.get_dtype(), _size(part))
    return tensors


def _size(part):
    size = ITEM_SIZES[part.get_dtype()]
    for length in part.get_shape():
        size *= length
    return size
