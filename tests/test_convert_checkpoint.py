"""The command-line tool converts both ways, shows what it did, and fails in one line."""

import functools
import importlib.util
import os
import pathlib
import runpy
import sys

import ml_dtypes
import numpy as np
import pytest
from helpers import TINY_TRANSXNET
from helpers import one_backend
from helpers import randomize
from helpers import tiny_transxnet

import keras_dualstream
from keras_dualstream.conversion import read_checkpoint
from keras_dualstream.conversion import to_torch_state_dict
from keras_dualstream.presets.catalogue import PRESETS
from keras_dualstream.presets.checksums import sha256_of
from keras_dualstream.presets.folder import PRESET_FILES
from keras_dualstream.presets.folder import read_preset

SCRIPT = pathlib.Path(__file__).parent.parent / "tools" / "convert_checkpoint.py"


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """The tool as a module, with a small TransXNetT, in an empty folder."""
    builder = keras_dualstream.TransXNetT

    @functools.wraps(builder)
    def small(**options):
        return builder(**{**TINY_TRANSXNET, "input_shape": (32, 32, 3), "classes": 5, **options})

    monkeypatch.setattr(keras_dualstream, "TransXNetT", small)
    monkeypatch.chdir(tmp_path)
    specification = importlib.util.spec_from_file_location("convert_checkpoint", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def state_dict():
    return to_torch_state_dict(randomize(tiny_transxnet(), seed=2))


# Of TransXNet, for other channels, classes and images.
ADAPTED = ["patch_embed.proj.conv.weight", "classifier.2.weight", "classifier.2.bias"]
ADAPTED += [f"relative_pos_enc.{stage}" for stage in range(4)]


def same(found, expected):
    return found.keys() == expected.keys() and all((found[name] == expected[name]).all() for name in expected)


def test_both_ways_give_back_every_bit(tool, state_dict, capsys):
    np.savez("source.npz", **state_dict)
    assert tool.main(["to-keras", "source.npz", "model.weights.h5", "--model", "TransXNetT"]) == 0
    printed = capsys.readouterr().out
    assert "network.0.0.token_mixer.local_unit.weight" in printed
    assert "stage1_block1/mixer/local/kernels" in printed
    assert f"{sum('num_batches' not in name for name in state_dict)} tensors, read back bit for bit" in printed
    assert tool.main(["to-torch", "model.weights.h5", "back.safetensors", "--model", "TransXNetT"]) == 0
    assert same(read_checkpoint("back.safetensors"), state_dict)


@one_backend
@pytest.mark.parametrize("suffix", [".npz", ".pth", ".pt"])
def test_other_formats_hold_every_bit_too(suffix, tool, state_dict):
    tool.write_state_dict(f"back{suffix}", state_dict)
    assert same(read_checkpoint(f"back{suffix}"), state_dict)
    halves = {name: array.astype(ml_dtypes.bfloat16) for name, array in state_dict.items()}
    tool.write_state_dict(f"halves{suffix}", halves)
    assert same(read_checkpoint(f"halves{suffix}"), {name: array.astype("float32") for name, array in halves.items()})


@one_backend
def test_what_was_adapted_is_in_the_table(tool, state_dict, capsys):
    np.savez("source.npz", **state_dict)
    arguments = ["to-keras", "source.npz", "model.weights.h5", "--model", "TransXNetT", "--classes", "3"]
    arguments += ["--option", "input_shape=(32, 32, 1)", "--option", "pretraining_size=64"]
    assert tool.main(arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for note in ("the 5 classes are not the model's", "made to fit 1", "position tables were resized"):
        assert note in printed
    model = tiny_transxnet(input_shape=(32, 32, 1), classes=3, pretraining_size=64)
    model.load_weights("model.weights.h5")
    found = to_torch_state_dict(model)
    assert same({**found, **{name: state_dict[name] for name in ADAPTED}}, state_dict)


@one_backend
def test_published_copies_are_what_a_mirror_serves(tool, state_dict, capsys, monkeypatch):
    np.savez("transx-t.npz", **state_dict)
    assert tool.main(["to-keras", "transx-t.npz", "mirror", "--publish", "transxnet_t_224"]) == 0
    assert f"read back bit for bit: {os.path.join('mirror', 'transxnet_t_224')}" in capsys.readouterr().out
    config, _, info = read_preset("mirror/transxnet_t_224")
    assert config["config"]["image_shape"] == [None, None, 3]
    assert (info.preprocessing, info.licence) == (PRESETS["transxnet_t_224"].preprocessing, "Apache-2.0")
    digest = sha256_of("transx-t.npz")
    assert f"/transx-t.pth.tar (transx-t.npz, SHA-256 {digest}), converted by keras_dualstream 0" in info.provenance
    monkeypatch.setenv("KERAS_DUALSTREAM_MIRROR", "mirror")
    assert same(to_torch_state_dict(keras_dualstream.TransXNetT(weights="imagenet")), state_dict)
    # Once more over the old one.
    assert tool.main(["to-keras", "transx-t.npz", "mirror/", "--publish", "transxnet_t_224"]) == 0
    assert sorted(os.listdir("mirror/transxnet_t_224")) == sorted(PRESET_FILES)


MISTAKES = {
    "no licence": (
        ["to-keras", "source.npz", "mirror", "--publish", "dfvt_t_224"],
        "error: dfvt_t_224 cannot be published: its authors grant no licence to pass it on.",
    ),
    "an unknown preset": (
        ["to-keras", "source.npz", "mirror", "--publish", "dfvt"],
        "error: --publish must be one of dfvt_t_224, ",
    ),
    "publishing with classes": (
        ["to-keras", "source.npz", "mirror", "--publish", "transxnet_t_224", "--classes", "3"],
        "error: --publish goes with to-keras, and with neither --classes nor --option.",
    ),
    "publishing backwards": (
        ["to-torch", "source.npz", "mirror", "--publish", "transxnet_t_224"],
        "error: --publish goes with to-keras, and with neither --classes nor --option.",
    ),
    "publishing another checkpoint": (
        ["to-keras", "source.npz", "mirror", "--publish", "ds_net_t_224"],
        "error: The checkpoint does not fit the model, which is unchanged: missing in the checkpoint: ",
    ),
    "another number of classes": (
        ["to-keras", "source.npz", "x.weights.h5", "--model", "TransXNetT", "--option", "classes=3"],
        "error: The checkpoint has another number of classes than the model: give the model's by --classes.",
    ),
    "another model": (
        ["to-keras", "source.npz", "x.weights.h5", "--model", "TransXNetT", "--option", "depths=(1, 1, 1, 2)"],
        "error: The checkpoint does not fit the model, which is unchanged: missing in the checkpoint: ",
    ),
    "an unknown model": (
        ["to-keras", "source.npz", "x.weights.h5", "--model", "ResNet"],
        "--model must be one of D",
    ),
    "no file": (["to-keras", "no.pth", "x.weights.h5", "--model", "TransXNetT"], "does not exist. Received: 'no.pth'"),
    "no weights file": (
        ["to-torch", "no.weights.h5", "x.npz", "--model", "TransXNetT"],
        "The weights file does not exist. Received: 'no.weights.h5'",
    ),
    "a damaged file": (["to-keras", "bad.pth", "x.weights.h5", "--model", "TransXNetT"], "cannot be read: "),
    "another output": (["to-keras", "source.npz", "x.h5", "--model", "TransXNetT"], "must end in .weights.h5"),
    "no folder": (["to-keras", "source.npz", "no/x.weights.h5", "--model", "TransXNetT"], "folder does not exist"),
    "no value": (["to-keras", "source.npz", "x.weights.h5", "--model", "TransXNetT", "--option", "a"], "NAME=VALUE"),
    "an unknown option": (
        ["to-keras", "source.npz", "x.weights.h5", "--model", "TransXNetT", "--option", "colour=red"],
        "colour",
    ),
}


@one_backend
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line_and_leaves_no_file(name, tool, state_dict, capsys):
    np.savez("source.npz", **state_dict)
    pathlib.Path("bad.pth").write_bytes(b"PK\3\4")
    arguments, message = MISTAKES[name]
    assert tool.main(arguments) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert sorted(os.listdir()) == ["bad.pth", "source.npz"]


@one_backend
def test_a_file_that_reads_back_otherwise_is_not_kept(tool, state_dict, capsys, monkeypatch):
    np.savez("source.npz", **state_dict)
    monkeypatch.setattr(keras_dualstream.ImageClassifier, "load_weights", lambda self, path: randomize(self))
    assert tool.main(["to-keras", "source.npz", "x.weights.h5", "--model", "TransXNetT"]) == 1
    assert "The new file does not read back as it was written: patch_embed.proj.conv.weight" in capsys.readouterr().err
    assert os.listdir() == ["source.npz"]


@one_backend
def test_the_process_ends_with_the_status(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tool", "to-keras", "no.pth", "x.weights.h5", "--model", "DualViTS"])
    monkeypatch.setattr(keras_dualstream, "DualViTS", lambda include_top=True: tiny_transxnet())
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: The checkpoint file does not exist. Received: 'no.pth'\n"


@one_backend
def test_a_missing_rich_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(SystemExit, match=r"needs rich: pip install 'keras_dualstream\[convert\]'"):
        runpy.run_path(str(SCRIPT))
