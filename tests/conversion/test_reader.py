"""Checkpoint files are read as the frameworks would, without them, and hostile ones are refused, without harm."""

import argparse
import collections
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import tracemalloc
import types
import zipfile

import hostile_files
import keras
import numpy as np
import pytest
from helpers import one_backend

from keras_dualstream.conversion import read_checkpoint
from keras_dualstream.conversion.reader import pickle_machine
from keras_dualstream.conversion.reader import state_dict

FUZZER = pathlib.Path(__file__).parent.parent / "fuzz_reader.py"
BACKEND = keras.config.backend()
TENSOR = hostile_files.tensor()


def write(tmp_path, content, name="file.pth"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def as_numpy(tensor):
    import torch

    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        array = tensor if isinstance(tensor, np.ndarray) else as_numpy(tensor)
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def layouts(dtype="float32"):
    """Tensors of one dtype, laid out in every way."""
    import torch

    x = torch.arange(60).reshape(3, 4, 5).to(getattr(torch, dtype))
    return collections.OrderedDict(
        whole=x,
        transposed=x.permute(2, 0, 1),
        part=x[1:, ::2, 1:4:2],
        repeated=x[:1].expand(4, 4, 5),
        scalar=x[2, 3, 4],
        empty=x[:, :0],
        alone=torch.zeros((0, 3), dtype=x.dtype),
        one=x[1:2, 2:3],
    )


DTYPES = "float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool complex64 complex128"


@one_backend
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("dtype", DTYPES.split())
def test_every_dtype_and_layout_of_pytorch_reads_as_pytorch_reads_it(dtype, zipped, tmp_path):
    import torch

    torch.save(layouts(dtype), tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
    # PyTorch 2.13 itself cannot read the dtypes that came later in its old format.
    late = not zipped and dtype in ("uint16", "uint32", "uint64")
    expected = layouts(dtype) if late else torch.load(tmp_path / "file.pt", weights_only=True)
    assert_equal(read_checkpoint(tmp_path / "file.pt"), expected)


@one_backend
def test_tensors_that_share_memory_share_it(tmp_path):
    import torch

    torch.save(layouts(), tmp_path / "file.pt")
    found = read_checkpoint(str(tmp_path / "file.pt"))
    assert np.shares_memory(found["whole"], found["part"])


@one_backend
def test_parameters_and_tensors_with_attributes_are_tensors(tmp_path):
    import torch

    parameter, tensor = torch.nn.Parameter(torch.ones(3)), torch.ones(2)
    plain = torch.nn.Parameter(torch.ones(4))
    parameter.no_decay, tensor.name_of_layer = True, "x"
    torch.save({"a": parameter, "b": tensor, "c": plain}, tmp_path / "file.pt")
    assert_equal(read_checkpoint(tmp_path / "file.pt"), {"a": parameter, "b": tensor, "c": plain})


@one_backend
@pytest.mark.parametrize("order", ["big", "little"])
def test_the_file_tells_its_byte_order(order, tmp_path):
    """As `torch.save` writes on other machines: an entry `byteorder`."""
    content = np.array([1, 2], ">f4" if order == "big" else "<f4").tobytes()
    entries = {"archive/data/7": content, "archive/byteorder": order}
    data = hostile_files.pickled(hostile_files.tensor(key="7"))
    path = write(tmp_path, hostile_files.archive(data, entries))
    assert_equal(read_checkpoint(path), {"a": np.array([1, 2], "float32")})


@one_backend
def test_files_without_checksums_are_read(tmp_path):
    import torch

    torch.serialization.set_crc32_options(False)
    try:
        torch.save(layouts(), tmp_path / "file.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_equal(read_checkpoint(tmp_path / "file.pt"), layouts())


CLASSES = """
import enum
class CfgNode(dict):
    pass
class Schedule(enum.Enum):
    COSINE = "cosine"
"""


@pytest.fixture
def settings(monkeypatch):
    """What training scripts save beside the weights, of a module like yacs that is gone when the file is read."""
    module = types.ModuleType("yacs_config")
    exec(CLASSES, module.__dict__)
    monkeypatch.setitem(sys.modules, "yacs_config", module)
    CfgNode = module.CfgNode
    node = CfgNode(MODEL=CfgNode(NAME="DFvT", DEPTHS=[1, 1, 2, 1]))
    node.__dict__["__immutable__"] = True
    return {
        "args": argparse.Namespace(lr=0.1, output=pathlib.PurePosixPath("/x"), schedule=module.Schedule.COSINE),
        # PyTorch writes them under their names of Python 2.
        "types": argparse.Namespace(count=int, name=str, steps=range(3)),
        "generators": [np.random.default_rng(0), np.random.RandomState(0)],
        "config": node,
        "epoch": 299,
        "max_accuracy": np.float64(81.6),
        "history": np.arange(3.0),
        "random": {1, 2},
        "steps": collections.defaultdict(list, a=[1]),
        "shape": __import__("torch").Size([1, 2]),
        "device": __import__("torch").device("cpu"),
        "dtype": __import__("torch").float16,
    }


@one_backend
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("entry", ["state_dict", "model", "state_dict_ema", "model_ema"])
def test_weights_are_found_beside_everything_else(entry, zipped, settings, tmp_path, monkeypatch):
    import torch

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    wrapped = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    path = tmp_path / "file.pth.tar"
    tree = {**settings, entry: wrapped, "optimizer": optimizer.state_dict()}
    torch.save(tree, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "yacs_config")
    assert_equal(read_checkpoint(path), model.state_dict())


@one_backend
def test_averaged_weights_are_taken_when_asked_for(tmp_path):
    import torch

    tree = {"state_dict": {"a": torch.zeros(2)}, "state_dict_ema": {"a": torch.ones(2)}, "x": {"y": torch.ones(1)}}
    torch.save(tree, tmp_path / "file.pt")
    assert_equal(read_checkpoint(tmp_path / "file.pt"), {"a": torch.zeros(2)})
    assert_equal(read_checkpoint(tmp_path / "file.pt", entry="state_dict_ema"), {"a": torch.ones(2)})
    assert_equal(read_checkpoint(tmp_path / "file.pt", entry="x"), {"y": torch.ones(1)})
    with pytest.raises(ValueError, match="it has no dict 'z'. It has: state_dict, state_dict_ema, x"):
        read_checkpoint(tmp_path / "file.pt", entry="z")
    torch.save({"x": {"y": torch.ones(1)}, "epoch": 3}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match="give the `entry` that holds them. It has: x, epoch"):
        read_checkpoint(tmp_path / "file.pt")


@one_backend
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_paddle_files_are_read(protocol, tmp_path):
    """A pickle of names and arrays; bfloat16 as uint16, tensors inside dicts as a pair with their name."""
    arrays = {
        "patch_embed.weight": np.arange(24, dtype="float32").reshape(2, 3, 4),
        "norm._mean": np.arange(3, dtype=">f8"),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "empty": np.zeros((0, 2), "float16"),
        "scalar": np.array(3, "int64"),
    }
    path = tmp_path / "DSNet_tiny_pretrained.pdparams"
    halves = np.array([1, -2.5], "float32").view("uint16")[1::2]
    with open(path, "wb") as file:
        names = {name: f"parameter_{name}" for name in arrays}
        pickle.dump({**arrays, "half": halves, "StructuredToParameterName@@": names}, file, protocol)
    expected = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in arrays.items()}
    assert_equal(read_checkpoint(path), {**expected, "half": np.array([1, -2.5], "float32")})
    with open(path, "wb") as file:
        pickle.dump({"model": {name: (name, array) for name, array in arrays.items()}, "epoch": 3}, file, protocol)
    assert_equal(read_checkpoint(path), expected)


@one_backend
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpy_files_are_read(save, tmp_path):
    import ml_dtypes

    arrays = {
        name: as_numpy(tensor) for dtype in ("float16", "int64", "bool") for name, tensor in layouts(dtype).items()
    }
    arrays["big"] = np.arange(3, dtype=">i4")
    arrays["fortran"] = np.asfortranarray(np.arange(6).reshape(2, 3))
    save(tmp_path / "file.npz", half=np.array([1, -2.5], ml_dtypes.bfloat16), **arrays)
    arrays["big"] = arrays["big"].astype("i4")
    assert_equal(read_checkpoint(tmp_path / "file.npz"), {"half": np.array([1, -2.5], "float32"), **arrays})


@one_backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int8", "int64", "uint8", "bool"])
def test_safetensors_files_are_read(dtype, tmp_path):
    from safetensors.torch import save_file

    tensors = {f"module.{name}": tensor.contiguous() for name, tensor in layouts(dtype).items() if name != "repeated"}
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "file.safetensors", metadata={"format": "pt"})
    found = read_checkpoint(tmp_path / "file.safetensors")
    assert_equal(dict(sorted(found.items())), {name[7:]: tensor for name, tensor in sorted(tensors.items())})


@one_backend
def test_a_missing_safetensors_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'keras_dualstream\[convert\]'"):
        read_checkpoint(write(tmp_path, struct.pack("<Q", 2) + b"{}", "file.safetensors"))


@pytest.mark.skipif(BACKEND == "torch", reason="this backend is PyTorch")
def test_no_pytorch_is_needed(tmp_path):
    import torch

    torch.save({"state_dict": layouts("bfloat16"), "args": argparse.Namespace(x=1)}, tmp_path / "new.pth")
    torch.save(layouts(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    code = f"""
import json, sys

class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "paddle"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from keras_dualstream.conversion import read_checkpoint
found = [read_checkpoint(path)["part"].tolist() for path in {[str(path) for path in tmp_path.iterdir()]}]
assert "torch" not in sys.modules
print(json.dumps(found))
"""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    part = layouts()["part"].tolist()
    assert json.loads(printed.stdout) == [part, part]


@one_backend
@pytest.mark.parametrize(("module", "name"), hostile_files.CALLS)
def test_calls_are_refused_and_not_made(module, name, tmp_path, monkeypatch):
    """By every opcode that could make them, in every format that has pickles."""
    canary = tmp_path / "canary"
    monkeypatch.chdir(tmp_path)
    arguments = hostile_files.text(f"touch {canary}") + b"\x85"
    function = b"c" + f"{module}\n{name}\n".encode()
    by_stack = hostile_files.text(module) + hostile_files.text(name) + b"\x93"
    calls = [function + arguments + b"R", by_stack + arguments + b"R", b"(" + arguments[:-1] + function + b"o"]
    calls.append(b"(" + arguments[:-1] + b"i" + function[1:])
    for call in calls:
        data = hostile_files.pickled(TENSOR + b"s" + hostile_files.text("b") + call)
        with pytest.raises(ValueError, match="which is not on the list|the opcode (INST|OBJ)"):
            read_checkpoint(write(tmp_path, hostile_files.archive(data)))
        with pytest.raises(ValueError, match="which is not on the list|the opcode (INST|OBJ)"):
            read_checkpoint(write(tmp_path, hostile_files.pickled(call), "file.pdparams"))
    assert not canary.exists()


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@one_backend
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_a_file_that_pytorch_wrote_is_refused_too(zipped, tmp_path):
    import torch

    canary, path = tmp_path / "canary", tmp_path / "file.pth"
    tree = {"state_dict": layouts(), "args": Runs(f"touch {canary}")}
    torch.save(tree, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="'posix.system', which is not on the list of what is harmless"):
        read_checkpoint(path)
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists(), "the file was harmless"


@one_backend
@pytest.mark.parametrize("name", hostile_files.PICKLES)
def test_hostile_pickles_are_refused_at_little_cost(name, tmp_path):
    end = b"" if name == "no end" else b"."
    data = b"\x80\x02" + hostile_files.PICKLES[name] + end
    paths = [write(tmp_path, data, "file.pdparams"), write(tmp_path, hostile_files.archive(data))]
    tracemalloc.start()
    for path in paths:
        with pytest.raises(ValueError, match="cannot be read: "):
            read_checkpoint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * 2**20


@one_backend
@pytest.mark.parametrize("end", [b".", TENSOR + b"s."], ids=["without tensors", "with one"])
def test_dicts_inside_themselves_are_looked_at_once(end, tmp_path):
    """Every usual name leads back to the same dict of many items."""
    items = b"".join(hostile_files.text(str(index)) + b"N" for index in range(2000))
    names = b"".join(hostile_files.text(name) + b"h\x00" for name in state_dict.ENTRIES + state_dict.AVERAGED)
    data = b"\x80\x02}q\x00(" + items + names + b"u" + (b"" if end == b"." else hostile_files.text("a")) + end
    path = write(tmp_path, hostile_files.archive(data))
    if end == b".":
        with pytest.raises(ValueError, match="it has no tensors under a known name"):
            read_checkpoint(path)
    else:
        assert_equal(read_checkpoint(path), {"a": np.array([1, 2], "float32")})


@one_backend
def test_a_pickle_of_too_many_objects_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_machine, "MOST_OPCODES", 1000)
    with pytest.raises(ValueError, match="its pickle has more than 1000 opcodes"):
        read_checkpoint(write(tmp_path, b"\x80\x02" + b"}" * 2000 + b"."))


TENSORS = {
    "beyond its storage": dict(shape=(3,)),
    "an offset beyond its storage": dict(offset=1),
    "strides beyond its storage": dict(shape=(2, 1), strides=(5, 1)),
    "a negative stride": dict(strides=(-1,)),
    "a negative size": dict(shape=(-1,)),
    "a negative offset": dict(offset=-1),
    "another number of strides": dict(strides=(1, 1)),
    "a tebibyte of the same number": dict(shape=(2**38,), strides=(0,)),
    "sizes that overflow": dict(shape=(2**61, 2**61), strides=(0, 0)),
    "a hundred axes": dict(shape=(1,) * 100, strides=(1,) * 100),
    "a storage of another size": dict(size=1),
    "a huge storage": dict(size=2**40),
    "a storage that is not there": dict(key="1"),
    "a storage outside": dict(key="../data.pkl"),
    "a quantised storage": dict(storage="QInt8Storage"),
    "a storage of two dtypes": dict(storage="IntStorage"),
}


@one_backend
@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_cannot_be_are_refused(name, tmp_path):
    second = TENSOR + b"s" + hostile_files.text("b") if name == "a storage of two dtypes" else b""
    data = hostile_files.pickled(second + hostile_files.tensor(**TENSORS[name]))
    with pytest.raises(ValueError, match="cannot be read: (it|a tensor|the)"):
        read_checkpoint(write(tmp_path, hostile_files.archive(data)))


@one_backend
def test_the_names_of_storages_may_be_anything(tmp_path):
    """Found by the fuzzer: the error of a look-up shows the key, here one of 2^40 parts."""
    import torch

    torch.save({"a": torch.ones(2)}, tmp_path / "file.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "file.pth").read_bytes()
    names = data.rindex(b"\x80\x02]q")
    end = data.index(b"a.", names)
    for key in (b"N" + b"2\x86" * 40, b"]", b"N" + b"\x85" * 50_000):
        with pytest.raises(ValueError, match="it lists other storages than its tensors have"):
            read_checkpoint(write(tmp_path, data[:end] + b"0" + key + data[end:]))


@one_backend
@pytest.mark.parametrize("name", ["../outside", "/outside", "archive/../../outside", "C:\\outside", "archive\\x"])
def test_entries_outside_the_archive_are_refused(name, tmp_path):
    path = write(tmp_path, hostile_files.archive(hostile_files.pickled(TENSOR), {name: b"x"}))
    with pytest.raises(ValueError, match="points outside the archive"):
        read_checkpoint(path)
    assert [item.name for item in tmp_path.iterdir()] == ["file.pth"]


@one_backend
def test_a_bomb_is_not_unpacked(tmp_path):
    data = hostile_files.pickled(hostile_files.tensor(shape=(25 * 2**20,), size=25 * 2**20, key="9"))
    entries = {"archive/data/9": bytes(100 * 2**20)}
    path = write(tmp_path, hostile_files.archive(data, entries, zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="would expand from [0-9]+ to 104857724 bytes"):
        read_checkpoint(path)
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


@one_backend
def test_a_deflated_archive_is_read_and_lying_sizes_are_not(tmp_path):
    data = hostile_files.archive(hostile_files.pickled(TENSOR), compression=zipfile.ZIP_DEFLATED)
    assert_equal(read_checkpoint(write(tmp_path, data)), {"a": np.array([1, 2], "float32")})
    directory = data.rindex(b"PK\1\2")
    for size in (7, 9, 2**31, 2**32 - 1):
        lie = data[: directory + 24] + struct.pack("<I", size) + data[directory + 28 :]
        with pytest.raises(ValueError, match="cannot be read"):
            read_checkpoint(write(tmp_path, lie))


@one_backend
def test_damaged_numbers_are_noticed(tmp_path):
    data = bytearray(hostile_files.archive(hostile_files.pickled(TENSOR)))
    data[data.index(np.float32(2).tobytes())] ^= 1
    with pytest.raises(ValueError, match="CRC"):
        read_checkpoint(write(tmp_path, bytes(data)))


@one_backend
@pytest.mark.parametrize(
    "content",
    [
        hostile_files.npz((2**40,)),
        hostile_files.npz((3,)),
        hostile_files.npz((2**62, 2**62)),
        hostile_files.npz((2,), "|O"),
        hostile_files.npz((2,), "<U1"),
        hostile_files.npz("(" * 50 + ")" * 50),
        struct.pack("<Q", 2**40) + b"{",
        struct.pack("<Q", 99_999_999) + b'{"a":',
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}     ' + b"\0" * 8,
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}  ' + b"\0",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        b"PK\3\4",
        b"PK\5\6" + b"\xff" * 18,
        b"PK\5\6" + bytes(8) + struct.pack("<IIH", 2**31, 0, 0),
        b"\x89HDF\r\n\x1a\n",
        b"\x1f\x8b",
        b"",
    ],
    ids=range(17),
)
def test_other_and_damaged_files_are_refused(content, tmp_path):
    with pytest.raises(ValueError, match="cannot be read: "):
        read_checkpoint(write(tmp_path, content))


@one_backend
def test_every_truncation_is_refused(tmp_path):
    data = hostile_files.archive(hostile_files.pickled(TENSOR))
    for length in range(0, len(data), 7):
        with pytest.raises(ValueError, match="cannot be read: "):
            read_checkpoint(write(tmp_path, data[:length]))


@one_backend
def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist. Received: '.*missing.pth'"):
        read_checkpoint(tmp_path / "missing.pth")
    with pytest.raises(TypeError, match="`path` must be a path. Received: <class 'dict'>"):
        read_checkpoint({})


@one_backend
def test_memory_is_that_of_the_arrays(tmp_path):
    """One copy, beside a buffer of a megabyte."""
    import torch

    torch.save({str(index): torch.ones(2**18) for index in range(32)}, tmp_path / "file.pt")
    tracemalloc.start()
    found = read_checkpoint(tmp_path / "file.pt")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < sum(array.nbytes for array in found.values()) + 6 * 2**20


@one_backend
def test_damage_of_every_kind_is_refused_or_read(tmp_path):
    """A process of its own under a limit of memory; `FUZZ_MUTATIONS` for longer runs."""
    mutations = os.environ.get("FUZZ_MUTATIONS", "1000")
    command = [sys.executable, str(FUZZER), "--mutations", mutations]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    print(process.stdout)
    assert f"tried={mutations} " in process.stdout
    assert "executed=0" in process.stdout
