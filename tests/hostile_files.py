"""Files that no framework writes: pickles by hand, archives by hand."""

import io
import pickle
import struct
import zipfile

import numpy as np


def text(value):
    """The opcodes of a str."""
    value = value.encode()
    return b"X" + struct.pack("<I", len(value)) + value


def long(value):
    """The opcodes of an int."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(shape=(2,), strides=(1,), offset=0, size=2, key="0", storage="FloatStorage"):
    """The opcodes of a tensor of PyTorch."""
    numbers = [b"(" + b"".join(long(number) for number in pair) + b"t" for pair in (shape, strides)]
    identity = b"(" + text("storage") + b"ctorch\n" + storage.encode() + b"\n" + text(key) + text("cpu") + long(size)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + b"tQ" + long(offset) + b"".join(numbers) + b"\x89}tR"


def pickled(value):
    """A pickle of a dict with the opcodes `value` under the name `a`."""
    return b"\x80\x02}" + text("a") + value + b"s."


def archive(data_pkl, entries=(), compression=zipfile.ZIP_STORED):
    """A file of PyTorch with one storage of two numbers, and other entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", data_pkl)
        file.writestr("archive/data/0", np.array([1, 2], "float32").tobytes())
        for name, content in dict(entries).items():
            file.writestr(name, content)
    return buffer.getvalue()


def npz(shape, dtype="<f4", content=b"\0" * 8):
    """A file of NumPy whose array says to have some shape."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.encode() + content)
    return buffer.getvalue()


DEEP = 20_000

# Each costs `pickle.Unpickler` its memory, its time or its stack.
PICKLES = {
    "nested lists": b"]" * DEEP + b"a" * (DEEP - 1),
    "a key of nested tuples": b"}" + b"N" + b"\x85" * DEEP + b"Ns",
    "a key that doubles 40 times": b"}" + b"N" + b"2\x86" * 40 + b"Ns",
    "bytes of 2^40": b"\x96" + struct.pack("<Q", 2**40),
    "text of 2^60": b"\x8d" + struct.pack("<Q", 2**60),
    "text of 2^32": b"X" + struct.pack("<I", 2**32 - 1),
    "a number of 2^31 bytes": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "a number of 20000 bits": b"\x8b" + struct.pack("<i", 2500) + b"\x7f" * 2500,
    "a negative length": b"\x8b" + struct.pack("<i", -1),
    "a memo of 2^32": b"Nr" + struct.pack("<I", 2**32 - 1),
    "a number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n",
    "a name of a million characters": b"c" + b"x" * 1_000_000 + b"\ny\n",
    "a name of a thousand characters": text("x" * 1000) + text("y") + b"\x93",
    "more marks than items": b"(" * 10 + b"t" * 20,
    "an object of the memo that is not there": b"h\x07",
    "an extension": b"\x82\x01",
    "an instance of old": b"(iargparse\nNamespace\n",
    "no end": b"}" * 5,
    "a state for a number": b"K\x01}b",
    "a dict of numbers alone": b"}(K\x01K\x02K\x03u",
    "a call with a thousand arguments": b"ctorch\nSize\n(" + b"N" * 1000 + b"tR",
}

# Module and function; all of them would do harm, or could.
CALLS = [
    *[("os", "system"), ("posix", "system"), ("nt", "system"), ("os", "popen"), ("subprocess", "Popen")],
    *[("builtins", "eval"), ("builtins", "exec"), ("__builtin__", "eval"), ("builtins", "getattr")],
    *[("builtins", "__import__"), ("builtins", "open"), ("builtins", "compile"), ("builtins", "type")],
    *[("operator", "attrgetter"), ("operator", "methodcaller"), ("importlib", "import_module")],
    *[("runpy", "_run_code"), ("pty", "spawn"), ("shutil", "rmtree"), ("socket", "create_connection")],
    *[("pickle", "loads"), ("_pickle", "loads"), ("types", "FunctionType"), ("types", "CodeType"), ("sys", "exit")],
    *[("torch", "load"), ("torch.hub", "load"), ("torch", "hub.load"), ("torch.storage", "_load_from_bytes")],
    *[("torch.jit", "load"), ("torch._utils", "_rebuild_qtensor"), ("numpy", "load"), ("numpy.core.numeric", "load")],
    *[("numpy", "fromfile"), ("numpy.testing._private.utils", "runstring"), ("keras.models", "load_model")],
    *[("helpers", "randomize"), ("__main__", "main"), ("torch._tensor", "os.system"), ("pip", "main")],
]
