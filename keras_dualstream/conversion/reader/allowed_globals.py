"""What the names in a pickle stand for: a list of harmless ones; everything else is never called."""

import sys

from keras_dualstream.conversion.reader.pickle_machine import MOST_ARGUMENTS
from keras_dualstream.conversion.reader.pickle_machine import Global
from keras_dualstream.conversion.reader.pickle_machine import Placeholder
from keras_dualstream.conversion.reader.stored import BFLOAT16
from keras_dualstream.conversion.reader.stored import DTYPES
from keras_dualstream.conversion.reader.stored import EncodedBytes
from keras_dualstream.conversion.reader.stored import Storage
from keras_dualstream.conversion.reader.stored import StoredArray
from keras_dualstream.conversion.reader.stored import StoredDtype
from keras_dualstream.conversion.reader.stored import StoredTensor
from keras_dualstream.conversion.reader.stored import check_counts

# Of Python 2.
OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
OLD_NAMES = {"builtins.long": "int", "builtins.unicode": "str", "builtins.xrange": "range"}

LONGEST_NAME = 500

# Classes of the standard library that settings are made of.
SETTINGS = {
    *("argparse.Namespace", "types.SimpleNamespace", "functools.partial", "copyreg._reconstructor"),
    *("collections.Counter", "collections.deque", "decimal.Decimal", "fractions.Fraction", "uuid.UUID"),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"{module}.{name}Path" for module in ("pathlib", "pathlib._local") for name in ("", "Posix", "Windows")),
    *(f"{module}.Pure{name}Path" for module in ("pathlib", "pathlib._local") for name in ("", "Posix", "Windows")),
    *(f"builtins.{name}" for name in ("bool", "bytearray", "complex", "float", "int", "object", "range")),
    *(f"builtins.{name}" for name in ("slice", "str")),
    *("torch.device", "torch.serialization._get_layout"),
}

# The state of random numbers is kept for going on with a training.
GENERATORS = (
    *(f"numpy.random._pickle.__{kind}_ctor" for kind in ("bit_generator", "generator", "randomstate")),
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
)

STORAGES = {
    **{"BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16"},
    **{"IntStorage": "int32", "LongStorage": "int64", "HalfStorage": "float16", "BFloat16Storage": BFLOAT16},
    **{"FloatStorage": "float32", "DoubleStorage": "float64"},
    **{"ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128"},
}


class TorchDtype:
    """A dtype of PyTorch, or the storage class of one.

    Args:
        name: str, one of `DTYPES` or `BFLOAT16`; `None` for a storage of any.
    """

    def __init__(self, name):
        self.name = name


def find_global(module, name):
    """The inert stand-in for `module.name`.

    Args:
        module: str.
        name: str.

    Returns:
        A `Global`, or a `TorchDtype`.

    Raises:
        ValueError: if it is of Python's standard library and not on the list.
    """
    if len(module) + len(name) > LONGEST_NAME:
        raise ValueError(f"its pickle has a name of more than {LONGEST_NAME} characters")
    module = OLD_MODULES.get(module, module)
    name = OLD_NAMES.get(f"{module}.{name}", name)
    full_name = f"{module}.{name}"
    if full_name in ("torch.storage.UntypedStorage", "torch.UntypedStorage"):
        return TorchDtype(None)
    if module == "torch" and name in (*DTYPES, BFLOAT16):
        return TorchDtype(name)
    if module in ("torch", "torch.cuda") and name in STORAGES:
        return TorchDtype(STORAGES[name])
    # NumPy 2 renamed the module.
    make = MAKERS.get(full_name.replace("numpy._core.", "numpy.core."))
    if make is not None or full_name in SETTINGS:
        return Global(full_name, make, is_class=True)
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        raise ValueError(f"its pickle wants {full_name!r}, which is not on the list of what is harmless")
    # Nothing is called in either case. By convention classes have capitals: an `Enum` in the settings passes, and a
    # function that the pickle wants to call does not.
    return Global(full_name, is_class=name.rpartition(".")[2][:1].isupper())


def _dict(*items):
    # Python 3 sets the items afterwards; a copy of many for each of a million calls would be large.
    if items:
        raise ValueError("its pickle makes a dict at once, as only Python 2 did")
    return {}


def _empty_bytes(*content):
    return Placeholder() if content else b""


def _sequence(items=(), *_):
    # The same object, again for want of a limit on copies.
    return items if isinstance(items, (list, tuple)) else Placeholder()


def _encode(text, encoding="utf-8", *_):
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("its pickle encodes what is no bytes")
    return EncodedBytes(text)


def _tensor(storage, offset, shape, strides, *_):
    return _tensor_of(storage, storage.dtype if isinstance(storage, Storage) else None, offset, shape, strides)


def _tensor_v3(storage, offset, shape, strides, requires_grad, hooks, dtype, *_):
    return _tensor_of(storage, dtype.name if isinstance(dtype, TorchDtype) else None, offset, shape, strides)


def _tensor_of(storage, dtype, offset, shape, strides):
    if not isinstance(storage, Storage) or dtype is None:
        raise ValueError("its pickle makes a tensor of no storage or of a dtype that is not supported")
    shape, strides = check_counts("the shape", shape), check_counts("the strides", strides)
    return StoredTensor(storage, dtype, offset, shape, strides)


def _parameter(tensor, *_):
    if not isinstance(tensor, StoredTensor):
        raise ValueError("its pickle makes a parameter of no tensor")
    return tensor


def _tensor_subclass(function, tensor_class, arguments, state):
    if not isinstance(function, Global) or function.make not in (_tensor, _tensor_v3, _parameter):
        raise ValueError("its pickle makes a tensor by an unknown function")
    return function.make(*arguments[:MOST_ARGUMENTS])


def _numpy_dtype(name, *_):
    return StoredDtype(BFLOAT16 if isinstance(name, Global) and name.name == "ml_dtypes.bfloat16" else name)


def _numpy_array(payload, dtype, shape, order, *_):
    return StoredArray(shape, dtype, payload, fortran=order == "F")


# From the name to the function that makes the stand-in of a call's result.
MAKERS = {
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda *_: {},
    "builtins.bytes": _empty_bytes,
    "builtins.dict": _dict,
    "builtins.list": _sequence,
    "builtins.tuple": _sequence,
    "builtins.set": _sequence,
    "builtins.frozenset": _sequence,
    "_codecs.encode": _encode,
    "torch.Size": _sequence,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _tensor_subclass,
    "numpy.dtype": _numpy_dtype,
    "numpy.core.multiarray._reconstruct": lambda *_: StoredArray(),
    # An epoch or an accuracy beside the weights, none of which is a scalar of NumPy.
    "numpy.core.multiarray.scalar": lambda *_: Placeholder(),
    **{name: lambda *_: Placeholder() for name in GENERATORS},
    "numpy.core.numeric._frombuffer": _numpy_array,
}
