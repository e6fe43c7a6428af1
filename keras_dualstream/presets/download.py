"""Files of the network in a cache: whole and verified, or not there."""

import contextlib
import hashlib
import os
import shutil
import socket
import tempfile
import urllib.parse

import h5py
import keras

from keras_dualstream.conversion.reader.read_checkpoint import read_checkpoint
from keras_dualstream.presets.checksums import SUMS_FILE
from keras_dualstream.presets.checksums import read_sums
from keras_dualstream.presets.checksums import sha256_of
from keras_dualstream.presets.checksums import write_sums
from keras_dualstream.presets.folder import PRESET_FILES
from keras_dualstream.presets.folder import read_preset
from keras_dualstream.presets.folder import write_file

# Seconds without a byte after which a server counts as gone.
PATIENCE = 60
OFFLINE = ("KERAS_DUALSTREAM_OFFLINE", "HF_HUB_OFFLINE")


def cache_folder():
    """Where downloads are kept: `models/keras_dualstream` in the folder of Keras, `KERAS_HOME` or `~/.keras`."""
    home = os.environ.get("KERAS_HOME") or os.path.join("~", ".keras")
    return os.path.join(os.path.abspath(os.path.expanduser(home)), "models", "keras_dualstream")


def cached_name(url):
    """The name of a URL's folder in the cache."""
    return "url-" + hashlib.sha256(url.encode()).hexdigest()[:16]


def is_offline():
    """Whether the user wants nothing of the network, by `KERAS_DUALSTREAM_OFFLINE` or `HF_HUB_OFFLINE`."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE)


def fetch_file(url, path, sha256=None):
    """Downloads a weights file or checkpoint, unless it is there already.

    Its SHA-256 is recorded beside it, in a file with the suffix `.sha256`, and every later file must have the same.
    Two processes that download at once each get the whole file, and the later one's takes the place of the other.

    Args:
        url: str.
        path: str. Where it is kept.
        sha256: str. Its published checksum; `None` for the recorded one. Defaults to `None`.

    Returns:
        `path`.

    Raises:
        OSError: if it cannot be downloaded, or is no such file.
        ValueError: if its checksum is another.
    """
    if os.path.isfile(path):
        if not os.path.isfile(_record(path)):
            # Put there by hand; were a wrong file recorded, the right one would be refused later.
            _check_content(path, f"The file {path!r}")
        _verify(path, path, sha256, f"The file {path!r}")
        return path
    with _beside(path, url) as temporary:
        download(url, temporary)
        _check_content(temporary, f"What was downloaded from {url}")
        _verify(temporary, path, sha256, f"What was downloaded from {url}")
        os.replace(temporary, path)
    return path


def fetch_preset(url, folder):
    """Downloads a preset folder, unless it is there already.

    Args:
        url: str. Address of the folder.
        folder: str. Where it is kept.

    Returns:
        `folder`.

    Raises:
        OSError: if a file cannot be downloaded.
        ValueError: if they are not those of the folder's `SHA256SUMS`, or that
            is another than was first used.
    """
    if os.path.isdir(folder):
        return folder
    with _beside(folder, url) as temporary:
        os.mkdir(temporary)
        for name in PRESET_FILES:
            download(f"{url.rstrip('/')}/{name}", os.path.join(temporary, name))
        read_preset(temporary)
        _verify(os.path.join(temporary, SUMS_FILE), folder, None, f"The preset at {url}")
        try:
            os.rename(temporary, folder)
        except OSError:
            # Another process was faster.
            if not os.path.isdir(folder):
                raise
    return folder


def fetch_from_hub(address):
    """Gets a preset folder from the Hugging Face Hub, or from its own cache.

    Args:
        address: str. `hf://user/repository`, or with a revision `hf://user/repository@revision`.

    Returns:
        The folder.

    Raises:
        ImportError: if `huggingface_hub` is not installed.
        OSError: if the files are neither there nor in the cache.
        ValueError: if they are no preset, damaged, or others than were first used.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            "Weights of the Hugging Face Hub need huggingface_hub: pip install 'keras_dualstream[hub]'. "
            f"Received: {address!r}"
        ) from error
    repository, _, revision = address.removeprefix("hf://").partition("@")
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(PRESET_FILES), local_files_only=is_offline()
        )
    except Exception as error:
        raise OSError(f"{address} could not be downloaded: {error}") from error
    read_preset(folder)
    with contextlib.suppress(OSError):
        os.makedirs(cache_folder(), exist_ok=True)
    record = os.path.join(cache_folder(), cached_name(address))
    _verify(os.path.join(folder, SUMS_FILE), record, None, f"The preset {address}")
    return folder


def download(url, path):
    """Downloads a file with a progress bar.

    Args:
        url: str.
        path: str. In a folder that exists.

    Raises:
        OSError: if it does not arrive whole, or is a web page.
    """
    folder, name = os.path.split(path)
    try:
        with _patience():
            keras.utils.get_file(name, url, cache_dir=folder, cache_subdir="")
    except Exception as error:
        reason = str(error).removeprefix(f"URL fetch failure on {url}: ").removeprefix("None -- ")
        raise OSError(f"{url} could not be downloaded: {reason}.") from error
    with open(path, "rb") as file:
        start = file.read(1000).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        raise OSError(f"{url} could not be downloaded: a web page came in place of the file.")


@contextlib.contextmanager
def _patience():
    """Lets new connections wait for `PATIENCE`, where the process has no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE if before is None else before)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _beside(path, url):
    """A path in a folder of its own in that of `path`, which is gone at the end."""
    if is_offline():
        raise OSError(
            f"{url} is not in the cache ({path!r}), and {' or '.join(OFFLINE)} keeps this process from the network."
        )
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=".downloading-", dir=folder)
    except OSError as error:
        raise OSError(
            f"{url} cannot be downloaded: the cache {folder!r} cannot be written to ({error.strerror}). "
            "Let the environment variable KERAS_HOME name a folder that can."
        ) from error
    try:
        yield os.path.join(temporary, os.path.basename(path))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_content(path, what):
    """Reads the file once: a server that breaks off without having told the length leaves a damaged one."""
    try:
        if path.endswith(".weights.h5"):
            h5py.File(path, "r").close()
        else:
            read_checkpoint(path)
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"The checkpoint {path!r} ")
        raise OSError(f"{what} is not used: {reason.removesuffix('.')}.") from error


def _verify(file, path, sha256, what):
    """Compares the SHA-256 of `file` with the published one, or with that recorded beside `path`."""
    digest, record = sha256_of(file), _record(path)
    known = sha256 or _recorded(record)
    if known is None:
        # A cache may be read-only, with a file in it that somebody else put there.
        with contextlib.suppress(OSError):
            write_file(record, lambda new: write_sums(new, {os.path.basename(path): digest}))
    elif digest != known.lower():
        source = "published" if sha256 else f"recorded in {record!r} when it was first used"
        remedy = "" if sha256 else f" If the change is meant, delete {record!r}."
        again = " To download it again, delete it." if file == path else ""
        raise ValueError(f"{what} is another: its SHA-256 is {digest}, that {source} is {known}.{remedy}{again}")


def _record(path):
    return f"{path}.sha256"


def _recorded(record):
    if not os.path.isfile(record):
        return None
    return next(iter(read_sums(record).values()), "unreadable")


def name_in(url):
    """The name of the file that a URL addresses, safe to have in a folder."""
    name = os.path.basename(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
    return name if name.strip(".") else "checkpoint"
