"""SHA-256 of files, written and read as the program `sha256sum` does."""

import hashlib
import os

SUMS_FILE = "SHA256SUMS"


def sha256_of(path):
    """The SHA-256 of a file.

    Args:
        path: str.

    Returns:
        str of 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_sums(path, files):
    """Writes the checksums of files.

    Args:
        path: str.
        files: dict from names to checksums.
    """
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{digest}  {name}\n" for name, digest in files.items())


def read_sums(path):
    """Reads what `write_sums` or `sha256sum` wrote.

    Args:
        path: str.

    Returns:
        Dict from names to checksums.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        pairs = [line.split(maxsplit=1) for line in file]
    return {pair[1].strip().lstrip("*"): pair[0].lower() for pair in pairs if len(pair) == 2}


def check_sums(folder, names):
    """Sees to it that files are those that a folder's checksums were made of.

    Args:
        folder: str. Holds the files, and their checksums in `SHA256SUMS`.
        names: list of str.

    Raises:
        ValueError: if one is another.
    """
    sums = read_sums(os.path.join(folder, SUMS_FILE))
    for name in names:
        digest = sha256_of(os.path.join(folder, name))
        if digest != sums.get(name):
            raise ValueError(
                f"The file `{name}` of the preset folder {folder!r} is not the one that was saved: its SHA-256 is "
                f"{digest}, in `{SUMS_FILE}` it is {sums.get(name)}. Get the folder again; if you changed the file on "
                f"purpose, write its new SHA-256 into `{SUMS_FILE}`."
            )
