"""Files of `torch.save`: the zip archives of today, and the format before PyTorch 1.6."""

import io

import numpy as np

from keras_dualstream.conversion.reader.allowed_globals import TorchDtype
from keras_dualstream.conversion.reader.allowed_globals import find_global
from keras_dualstream.conversion.reader.bounded_file import BoundedFile
from keras_dualstream.conversion.reader.pickle_machine import load_pickle
from keras_dualstream.conversion.reader.stored import Storage
from keras_dualstream.conversion.reader.stored import decoded

# The first pickle of a file in the old format.
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C


def read_pytorch_archive(archive):
    """The objects of a zip file of `torch.save`.

    Args:
        archive: an `Archive` with an entry `data.pkl` at the top or in one folder.

    Returns:
        The saved object, with `StoredTensor`s for its tensors, and the
        `ArchiveStorages` that they read.

    Raises:
        ValueError: if the file is damaged or not of `torch.save`.
    """
    names = [name for name in archive.names if name.split("/")[-1] == "data.pkl" and name.count("/") <= 1]
    if len(names) != 1:
        raise ValueError("its archive has no single entry `data.pkl`")
    folder = names[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in archive.names:
        raise ValueError("it is a TorchScript program; save its `state_dict()` instead")
    storages = ArchiveStorages(archive, folder)
    pickle = archive.read(names[0]).tobytes()
    return load_pickle(BoundedFile(io.BytesIO(pickle), len(pickle)), find_global, storages.declare), storages


class Storages:
    """The storages of a file, each read once and as one dtype, as PyTorch saves them.

    Args:
        big_endian: bool. Byte order of the file.
    """

    # Length of a reference to a storage.
    id_length = 5

    def __init__(self, big_endian):
        self.big_endian = big_endian
        self.declared, self._read = {}, {}

    def declare(self, persistent_id):
        """The `Storage` that a reference in a pickle describes.

        Args:
            persistent_id: what the pickle has, `("storage", dtype, key, device, size, ...)`.

        Raises:
            ValueError: if it is something else, or other than before.
        """
        storage = storage_of(persistent_id, self.id_length)
        if self.declared.setdefault(storage.key, storage) != storage:
            raise ValueError(f"it declares its storage {storage.key[:80]!r} twice")
        return storage

    def read(self, storage, dtype):
        """The storage as a flat array of `dtype`."""
        if storage.key not in self._read:
            self._read[storage.key] = dtype, decoded(self.raw(storage), dtype, self.big_endian)
        first, flat = self._read[storage.key]
        if first != dtype:
            raise ValueError(f"its storage {storage.key[:80]!r} is both {first} and {dtype}")
        return flat


class ArchiveStorages(Storages):
    """The storages in the entries of an archive.

    Args:
        archive: an `Archive`.
        folder: str. What the names of its entries start with.
    """

    def __init__(self, archive, folder):
        order = f"{folder}byteorder"
        super().__init__(big_endian=order in archive.names and archive.read(order).tobytes() == b"big")
        self.archive, self.folder = archive, folder

    def declare(self, persistent_id):
        """The `Storage`, once its entry is known to have its size."""
        storage = super().declare(persistent_id)
        size = self.archive.size(self._entry(storage))
        if (size or 0) != storage.nbytes:
            raise ValueError(f"its storage {storage.key[:80]!r} has {size} bytes instead of {storage.nbytes}")
        return storage

    def raw(self, storage):
        """The bytes of a storage."""
        return self.archive.read(self._entry(storage))

    def _entry(self, storage):
        return f"{self.folder}data/{storage.key}"


def read_old_pytorch_file(file, size):
    """The objects of a file of `torch.save` in the format before PyTorch 1.6.

    Args:
        file: binary file, read up to behind its magic number.
        size: int. Bytes of the file.

    Returns:
        As `read_pytorch_archive`.

    Raises:
        ValueError: if the file is damaged or of an older format still.
    """
    bounded = BoundedFile(file, size)
    version, system = load_pickle(bounded, find_global), load_pickle(bounded, find_global)
    if version != 1001 or not isinstance(system, dict):
        raise ValueError("it is of an unknown version of PyTorch's old format")
    storages = FileStorages(file, size, big_endian=system.get("little_endian") is False)
    tree = load_pickle(bounded, find_global, storages.declare)
    storages.locate(load_pickle(bounded, find_global))
    return tree, storages


class FileStorages(Storages):
    """The storages that follow one another behind the pickles of an old file.

    Args:
        file: binary file.
        size: int. Bytes of the file.
        big_endian: bool. Byte order of the file.
    """

    id_length = 6

    def __init__(self, file, size, big_endian):
        super().__init__(big_endian)
        self.file, self.size = file, size
        self._positions = {}

    def locate(self, keys):
        """Finds the storages; the file is at the first.

        Args:
            keys: the names in the order of the file.
        """
        # Looking up anything but text may take for ever.
        names = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not names or set(keys) != set(self.declared):
            raise ValueError("it lists other storages than its tensors have")
        position = self.file.tell()
        for key in keys:
            storage = self.declared[key]
            self.file.seek(position)
            count = int.from_bytes(self.file.read(8), "big" if self.big_endian else "little")
            self._positions[key] = position + 8
            position += 8 + storage.nbytes
            if count != storage.size or position > self.size:
                raise ValueError(f"its storage {key[:80]!r} is damaged or cut off")

    def raw(self, storage):
        """The bytes of a storage."""
        content = np.empty(storage.nbytes, "uint8")
        self.file.seek(self._positions[storage.key])
        if self.file.readinto(memoryview(content)) != len(content):
            raise ValueError(f"its storage {storage.key[:80]!r} is cut off")
        return content


def storage_of(persistent_id, length):
    """The `Storage` that a reference of PyTorch describes; a `ValueError` where it describes something else."""
    if not isinstance(persistent_id, tuple) or len(persistent_id) != length or persistent_id[0] != "storage":
        raise ValueError("its pickle refers to data that are no storage")
    _, dtype, key, _, size = persistent_id[:5]
    if not isinstance(dtype, TorchDtype):
        raise ValueError("it has a storage of a dtype that is not supported, such as a quantised one")
    if not isinstance(key, str) or not key.isalnum():
        raise ValueError("it has a storage whose name is no number")
    if persistent_id[5:] not in ((), (None,)):
        raise ValueError("it has storages inside storages, as only PyTorch before 0.4 wrote them")
    return Storage(key, dtype.name, size)
