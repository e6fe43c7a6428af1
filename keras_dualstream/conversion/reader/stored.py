"""What a checkpoint says about its arrays, before any of them is read."""

import dataclasses
import math

import numpy as np

# NumPy has none; its values are the upper halves of float32's.
BFLOAT16 = "bfloat16"

DTYPES = (
    *("float16", "float32", "float64", "complex64", "complex128", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)

# Of NumPy before 2.0.
MOST_AXES = 32


def item_size(dtype):
    """Bytes of one element of `dtype`, one of `DTYPES` or `BFLOAT16`, in a file."""
    return 2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize


def decoded(raw, dtype, big_endian=False):
    """The bytes of a file as a flat array in the machine's byte order, bfloat16 as float32.

    Args:
        raw: flat uint8 array of whole elements.
        dtype: str, one of `DTYPES` or `BFLOAT16`.
        big_endian: bool. Byte order of the file. Defaults to `False`.

    Returns:
        Flat array; it shares the memory of `raw` where that is possible.
    """
    if dtype == "bool":
        # A byte other than 0 and 1 would be no valid bool.
        return raw != 0
    stored = np.dtype("uint16" if dtype == BFLOAT16 else dtype).newbyteorder(">" if big_endian else "<")
    array = raw.view(stored).astype(stored.newbyteorder("="), copy=False)
    return (array.astype("uint32") << 16).view("float32") if dtype == BFLOAT16 else array


def check_counts(what, counts):
    """The counts as a tuple, once each is an int from 0 to what a file can hold.

    Args:
        what: str. What is counted, for the error.
        counts: sequence from a file, which may hold anything.

    Raises:
        ValueError: if it is no sequence of such ints, or too long a one.
    """
    if not isinstance(counts, (tuple, list)) or len(counts) > MOST_AXES:
        raise ValueError(f"{what} of a tensor is no list of at most {MOST_AXES} numbers")
    if any(type(count) is not int or not 0 <= count < 2**62 for count in counts):
        raise ValueError(f"{what} of a tensor has values that are no counts")
    return tuple(counts)


@dataclasses.dataclass(frozen=True)
class Storage:
    """A flat piece of memory that tensors of a PyTorch file are parts of.

    Args:
        key: str. Its name in the file.
        dtype: str; `None` where its tensors have their own.
        size: int. Number of elements; of bytes where `dtype` is `None`.
    """

    key: str
    dtype: str
    size: int

    def __post_init__(self):
        check_counts("the storage", [self.size])

    @property
    def nbytes(self):
        """Bytes in the file."""
        return self.size * (1 if self.dtype is None else item_size(self.dtype))


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A part of a storage, seen with a shape.

    Args:
        storage: a `Storage`.
        dtype: str.
        offset: int. First element.
        shape: tuple of int.
        strides: tuple of int. Elements from one index of an axis to the next.

    Raises:
        ValueError: if the part is not inside the storage.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple
    strides: tuple

    def __post_init__(self):
        check_counts("the offset", [self.offset])
        check_counts("the shape", self.shape)
        check_counts("the strides", self.strides)
        if len(self.shape) != len(self.strides):
            raise ValueError("a tensor has another number of strides than of axes")
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if 0 not in self.shape and last >= self.storage.nbytes // item_size(self.dtype):
            raise ValueError(f"a tensor of shape {list(self.shape)} reaches beyond its storage")

    @property
    def nbytes(self):
        """Bytes of the array as `read` returns it, if it were contiguous."""
        return math.prod(self.shape) * (4 if self.dtype == BFLOAT16 else item_size(self.dtype))

    def read(self, storages):
        """The array.

        Args:
            storages: has a method `read(storage, dtype)` that returns a flat array.
        """
        if 0 in self.shape:
            return np.zeros(self.shape, "float32" if self.dtype == BFLOAT16 else self.dtype)
        flat = storages.read(self.storage, self.dtype)[self.offset :]
        # The stride of a single index is never taken and may be any number.
        strides = [
            stride * flat.itemsize if size > 1 else 0 for size, stride in zip(self.shape, self.strides, strict=True)
        ]
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides)


class StoredDtype:
    """A pickled `numpy.dtype`.

    Args:
        name: str, such as `"f4"`, or `BFLOAT16`; anything else is not supported by `read`.
    """

    def __init__(self, name=None):
        self.name = name
        self.big_endian = False

    def set_state(self, state):
        """Takes what NumPy pickles beside the name: of interest is the byte order."""
        if not isinstance(state, tuple) or len(state) < 2:
            raise ValueError("a NumPy dtype has a damaged state")
        self.big_endian = state[1] == ">"

    @property
    def dtype(self):
        """Its name among `DTYPES`, or `BFLOAT16`.

        Raises:
            ValueError: if it is no plain numeric dtype.
        """
        if self.name == BFLOAT16:
            return BFLOAT16
        # Longer names are no simple types, and NumPy would parse them.
        known = isinstance(self.name, str) and len(self.name) <= 10 and self.name.isalnum()
        try:
            name = np.dtype(self.name).name if known else None
        except TypeError:
            name = None
        if name not in DTYPES:
            raise ValueError("a NumPy array has a dtype that is no plain number")
        return name


class StoredArray:
    """A pickled NumPy array, its bytes as the pickle has them.

    Args:
        shape: tuple of int.
        dtype: a `StoredDtype`.
        payload: bytes, bytearray, str or `EncodedBytes`.
        fortran: bool. Whether the first axis runs fastest. Defaults to `False`.
    """

    def __init__(self, shape=(0,), dtype=None, payload=b"", fortran=False):
        self.shape, self.dtype, self.payload, self.fortran = shape, dtype, payload, fortran

    def set_state(self, state):
        """Takes what NumPy pickles of an array: (version,) shape, dtype, order, bytes."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise ValueError("a NumPy array has a damaged state")
        self.shape, self.dtype, self.fortran, self.payload = state[-4:]

    @property
    def nbytes(self):
        """Bytes of the array as `read` returns it.

        Raises:
            ValueError: if the pickle describes no array of numbers.
        """
        if not isinstance(self.dtype, StoredDtype):
            raise ValueError("a NumPy array has no dtype")
        size = math.prod(check_counts("the shape", self.shape))
        return size * (4 if self.dtype.dtype == BFLOAT16 else item_size(self.dtype.dtype))

    def read(self, storages=None):
        """The array; read-only, as its memory is the pickle's.

        Args:
            storages: unused; `StoredTensor.read` has the same argument.
        """
        shape = check_counts("the shape", self.shape)
        if not isinstance(self.dtype, StoredDtype):
            raise ValueError("a NumPy array has no dtype")
        dtype = self.dtype.dtype
        # Python 2 had text for bytes.
        payload = EncodedBytes(self.payload) if isinstance(self.payload, str) else self.payload
        payload = payload.encoded() if isinstance(payload, EncodedBytes) else payload
        if not isinstance(payload, (bytes, bytearray)):
            raise ValueError("a NumPy array holds no plain bytes")
        if len(payload) != math.prod(shape) * item_size(dtype):
            raise ValueError(f"a NumPy array of shape {list(shape)} and {dtype} has {len(payload)} bytes")
        flat = decoded(np.frombuffer(payload, "uint8"), dtype, self.dtype.big_endian)
        return flat.reshape(shape, order="F" if self.fortran is True else "C")


class EncodedBytes:
    """Bytes that an old pickle keeps as text, encoded only when an array needs them.

    A pickle may ask for the same text a million times; kept as text it costs its memory once.

    Args:
        text: str. One character for each byte.
    """

    def __init__(self, text):
        self.text = text

    def encoded(self):
        """The bytes."""
        return self.text.encode("latin-1")
