"""One function for every format of checkpoint."""

import os
import zipfile
import zlib

from keras_dualstream.conversion.reader.allowed_globals import find_global
from keras_dualstream.conversion.reader.archive import Archive
from keras_dualstream.conversion.reader.archive import most_bytes
from keras_dualstream.conversion.reader.bounded_file import BoundedFile
from keras_dualstream.conversion.reader.numpy_file import StoredEntry
from keras_dualstream.conversion.reader.numpy_file import numpy_tensors
from keras_dualstream.conversion.reader.paddle_file import check_paddle
from keras_dualstream.conversion.reader.paddle_file import paddle_tensor
from keras_dualstream.conversion.reader.pickle_machine import load_pickle
from keras_dualstream.conversion.reader.pytorch_file import MAGIC_NUMBER
from keras_dualstream.conversion.reader.pytorch_file import read_old_pytorch_file
from keras_dualstream.conversion.reader.pytorch_file import read_pytorch_archive
from keras_dualstream.conversion.reader.safetensors_file import StoredSlice
from keras_dualstream.conversion.reader.safetensors_file import safetensors_tensors
from keras_dualstream.conversion.reader.state_dict import find_state_dict
from keras_dualstream.conversion.reader.state_dict import without_wrappers
from keras_dualstream.conversion.reader.stored import StoredArray
from keras_dualstream.conversion.reader.stored import StoredTensor

STORED = (StoredTensor, StoredArray, StoredEntry, StoredSlice)

# Their texts say what is wrong.
SPEAKING = (ValueError, zipfile.BadZipFile, zlib.error)
LONGEST_REASON = 500


def read_checkpoint(path, entry=None):
    """Reads the weights of a checkpoint file, without PyTorch or Paddle and without executing anything in it.

    The format is told by the content: PyTorch's `.pth`, `.pt` and `.pth.tar`
    (zip archives, and the format before PyTorch 1.6), `.safetensors`, Paddle's
    `.pdparams`, and NumPy's `.npz`. A pickle in the file is interpreted, never
    run: objects of unknown classes are left out, and a file that wants to call
    anything but the few functions that make tensors is refused.

    Args:
        path: str or path-like.
        entry: str. The dict in the file that holds the weights, such as
            `"state_dict_ema"`. Defaults to `None`, which takes the usual ones:
            `state_dict`, `model` and the like, averaged weights only where
            there are no others.

    Returns:
        Dict from names to NumPy arrays, in the order of the file and with the
        framework's own names, less a `module.` that all have. bfloat16 comes as
        float32, every other dtype as it is. Arrays may be read-only, and share
        memory where the file's tensors do.

    Raises:
        TypeError: if `path` is no path.
        ValueError: if there is no such file, or it is damaged, of another
            format, larger than it can be, or wants something executed.
        ImportError: if the file is of safetensors, which is not installed.

    Example:

    >>> import os, tempfile, numpy
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "weights.npz")
    ...     numpy.savez(path, **{"head.weight": numpy.ones((10, 32))})
    ...     {name: array.shape for name, array in read_checkpoint(path).items()}
    {'head.weight': (10, 32)}
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`path` must be a path. Received: {type(path)}")
    path = os.fsdecode(path)
    if not os.path.isfile(path):
        raise ValueError(f"The checkpoint file does not exist. Received: {path!r}")
    with open(path, "rb") as file:
        try:
            return _read(path, file, entry)
        except ImportError:
            raise
        except SPEAKING as error:
            raise ValueError(f"The checkpoint {path!r} cannot be read: {str(error)[:LONGEST_REASON]}") from error
        except Exception as error:
            # Whatever else a damaged file makes of zipfile, NumPy or the code here. Without its text: that of a
            # KeyError shows the key, which a file can make endless to print.
            raise ValueError(
                f"The checkpoint {path!r} cannot be read: it is damaged ({type(error).__name__})"
            ) from None


def _read(path, file, entry):
    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(9)
    file.seek(0)
    as_tensor, storages = _tensor, None
    if start.startswith(b"PK"):
        archive = Archive(file)
        if any(name.split("/")[-1] == "data.pkl" for name in archive.names):
            tree, storages = read_pytorch_archive(archive)
        else:
            tree = numpy_tensors(archive)
    elif start.startswith(b"\x80"):
        tree = load_pickle(BoundedFile(file, size), find_global)
        if type(tree) is int and tree == MAGIC_NUMBER:
            tree, storages = read_old_pytorch_file(file, size)
        else:
            check_paddle(tree)
            as_tensor = paddle_tensor
    elif start[8:] == b"{" or path.endswith(".safetensors"):
        tree = safetensors_tensors(path)
    elif start.startswith(b"\x89HDF"):
        raise ValueError("it is a weights file of Keras; load it with `model.load_weights`")
    else:
        raise ValueError(
            "it is no file of PyTorch, safetensors, Paddle or NumPy (`.npz`), "
            f"or its beginning is damaged. It begins with {start!r}"
        )
    stored = without_wrappers(find_state_dict(tree, as_tensor, entry))
    total = sum(tensor.nbytes for tensor in stored.values())
    if total > most_bytes(size):
        raise ValueError(f"it declares {total} bytes of tensors in a file of {size}")
    return {name: tensor.read(storages) for name, tensor in stored.items()}


def _tensor(value):
    return value if isinstance(value, STORED) else None
