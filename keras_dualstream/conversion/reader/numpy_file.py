"""Files of `numpy.savez`: a zip archive with one array an entry."""

import dataclasses
import io
import math

import numpy as np

from keras_dualstream.conversion.reader.stored import BFLOAT16
from keras_dualstream.conversion.reader.stored import DTYPES
from keras_dualstream.conversion.reader.stored import check_counts
from keras_dualstream.conversion.reader.stored import decoded
from keras_dualstream.conversion.reader.stored import item_size

SUFFIX = ".npy"

# NumPy itself reads no longer header unless asked to.
LONGEST_HEADER = 10000 + 12


@dataclasses.dataclass(frozen=True)
class StoredEntry:
    """An array in an entry of an archive.

    Args:
        archive: an `Archive`.
        entry: str. Name of the entry.
    """

    archive: object
    entry: str

    @property
    def nbytes(self):
        """Bytes of the array, at most."""
        return 2 * self.archive.size(self.entry)

    def read(self, storages=None):
        """The array.

        Args:
            storages: unused; `StoredTensor.read` has the same argument.

        Raises:
            ValueError: if the entry is no array of numbers, or of another size than its shape.
        """
        content = self.archive.read(self.entry)
        header = io.BytesIO(content[:LONGEST_HEADER].tobytes())
        shape, fortran, stored = _read_header(header)
        content = content[header.tell() :]
        # Where nothing has told NumPy of bfloat16, it saves it as two bytes of no meaning.
        dtype = BFLOAT16 if stored.kind == "V" and stored.itemsize == 2 and stored.names is None else stored.name
        if dtype not in (*DTYPES, BFLOAT16):
            raise ValueError(f"its array {self.entry[:80]!r} has a dtype that is no plain number")
        if math.prod(check_counts("the shape", shape)) * item_size(dtype) != len(content):
            raise ValueError(f"its array {self.entry[:80]!r} has {len(content)} bytes, not those of its shape")
        return decoded(content, dtype, stored.byteorder == ">").reshape(shape, order="F" if fortran else "C")


def _read_header(file):
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError("it has an array of an unknown version of NumPy's format")


def numpy_tensors(archive):
    """The arrays of a file of `numpy.savez`.

    Args:
        archive: an `Archive`.

    Returns:
        Dict from names to `StoredEntry`s.

    Raises:
        ValueError: if it has anything but arrays.
    """
    others = [name for name in archive.names if not name.endswith(SUFFIX)]
    if others:
        raise ValueError(f"its archive is neither of PyTorch nor of NumPy: it has an entry {others[0][:80]!r}")
    return {name.removesuffix(SUFFIX): StoredEntry(archive, name) for name in archive.names}
