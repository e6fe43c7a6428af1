"""Zip archives that cannot make their reader run out of memory."""

import struct
import zipfile

import numpy as np

CHUNK = 2**20

# An archive within the first is read whatever it declares; past it, at most so many times the file. Weights compress by
# less than 2; 1000 is what zip can do to zeros.
SMALL = 64 * 2**20
MOST_EXPANSION = 10

# Python makes some 13 bytes of every byte of an archive's directory. A checkpoint of 1,000 tensors has 80 kB.
LONGEST_DIRECTORY = 16 * 2**20

END, END_64_LOCATOR = b"PK\5\6", b"PK\6\7"


def most_bytes(file_size):
    """How many bytes of arrays a file of `file_size` bytes may hold."""
    return max(SMALL, MOST_EXPANSION * file_size)


class Archive:
    """A zip archive of stored or deflated entries, checked before any entry is read.

    Args:
        file: binary file.

    Raises:
        ValueError: if the archive is damaged or declares what no checkpoint does.
    """

    def __init__(self, file):
        self.file_size = file.seek(0, 2)
        _check_directory(file, self.file_size)
        self._zip = zipfile.ZipFile(file)
        self._entries = {}
        for entry in self._zip.infolist():
            _check_entry(entry)
            if entry.filename in self._entries:
                raise ValueError(f"its archive has two entries {entry.filename[:80]!r}")
            self._entries[entry.filename] = entry
        self._check_sizes()
        if all(entry.CRC == 0 for entry in self._entries.values()):
            # PyTorch leaves the checksums out if asked to.
            for entry in self._entries.values():
                entry.CRC = None

    def _check_sizes(self):
        stored = [entry for entry in self._entries.values() if entry.compress_type == zipfile.ZIP_STORED]
        if any(entry.file_size != entry.compress_size for entry in stored):
            raise ValueError("its archive has an entry of two sizes")
        if sum(entry.compress_size for entry in self._entries.values()) > self.file_size:
            raise ValueError("its archive declares more bytes than the file has")
        total = sum(entry.file_size for entry in self._entries.values())
        if total > most_bytes(self.file_size):
            raise ValueError(f"its archive would expand from {self.file_size} to {total} bytes")

    @property
    def names(self):
        """The names of the entries."""
        return list(self._entries)

    def size(self, name):
        """Bytes of an entry; `None` where there is no such entry."""
        return self._entries[name].file_size if name in self._entries else None

    def read(self, name):
        """The bytes of an entry, checked against its checksum, as a uint8 array of their own."""
        content = np.empty(self.size(name), "uint8")
        filled = 0
        with self._zip.open(self._entries[name]) as stream:
            while chunk := stream.read(CHUNK):
                content[filled : filled + len(chunk)] = np.frombuffer(chunk, "uint8")
                filled += len(chunk)
        if filled != len(content):
            raise ValueError(f"its entry {name[:80]!r} ends after {filled} of {len(content)} bytes")
        return content


def _check_entry(entry):
    name = entry.filename
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"its entry {name[:80]!r} is compressed by another method than deflate")
    if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
        raise ValueError(f"its entry {name[:80]!r} points outside the archive")


def _check_directory(file, file_size):
    """Refuses a directory that is too long, before Python parses it."""
    start = max(0, file_size - 2**16 - 22)
    file.seek(start)
    tail = file.read()
    end = tail.rfind(END)
    if end < 0 or end + 22 > len(tail):
        raise ValueError("its archive has no end: the file is truncated or damaged")
    (length,) = struct.unpack_from("<I", tail, end + 12)
    if length == 0xFFFFFFFF and end >= 20 and tail[end - 20 : end - 16] == END_64_LOCATOR:
        (position,) = struct.unpack_from("<Q", tail, end - 12)
        file.seek(min(position, file_size))
        record = file.read(56)
        length = struct.unpack_from("<Q", record, 40)[0] if len(record) == 56 else length
    if length > LONGEST_DIRECTORY:
        raise ValueError(f"its archive has a directory of {length} bytes, more than {LONGEST_DIRECTORY}")
