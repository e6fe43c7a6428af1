"""The example names what is in images, draws it, and explains what the user can mend."""

import functools
import importlib.util
import os
import pathlib
import re

import keras
import numpy as np
import pytest
from helpers import TINY_DFVT
from helpers import randomize
from helpers import tiny_dfvt

import keras_dualstream

SCRIPT = pathlib.Path(__file__).parent.parent / "examples" / "classify_image.py"

pytestmark = pytest.mark.skipif(keras.config.backend() != "torch", reason="other tests have the models on each backend")
NAMES = ["ape", "bee", "cat", "dog", "eel"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two images, and the preset of a small DFvTT."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    keras.utils.save_img(folder / "photo.jpg", rng.integers(0, 256, (60, 80, 3)), data_format="channels_last")
    keras.utils.save_img(folder / "gray.png", rng.integers(0, 256, (90, 50, 1)), data_format="channels_last")
    preprocessing = keras_dualstream.Preprocessing((32, 40), crop=0.9)
    randomize(tiny_dfvt()).save_to_preset(folder / "preset", preprocessing, NAMES)
    return folder


@pytest.fixture
def example(folder, monkeypatch, tmp_path):
    """The example as a module, with a small DFvTT, in the folder of the images."""
    builder = keras_dualstream.DFvTT

    @functools.wraps(builder)
    def small(**options):
        return builder(**{**TINY_DFVT, **options})

    monkeypatch.chdir(folder)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(keras_dualstream, "DFvTT", small)
    specification = importlib.util.spec_from_file_location("classify_image", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_classes_are_printed_and_drawn(example, capsys):
    arguments = ["photo.jpg", "gray.png", "--model", "DFvTT", "--weights", "preset", "--classes", "5", "--top", "3"]
    assert example.main([*arguments, "--draw", "top.png"]) == 0
    printed = capsys.readouterr().out
    model = keras_dualstream.DFvTT(weights="preset", classes=5)
    expected = []
    for path in ("photo.jpg", "gray.png"):
        image = keras.utils.img_to_array(keras.utils.load_img(path))
        row = model.predict(keras_dualstream.preprocess_input([image], "preset"), verbose=0)[0]
        expected += [path] + [f"  {row[i]:6.1%}  {NAMES[i]}" for i in row.argsort()[::-1][:3]]
    assert printed.splitlines() == [*expected, "Drawn into top.png."]
    assert pathlib.Path("top.png").read_bytes().startswith(b"\x89PNG")


def test_classes_without_names_are_numbered(example, capsys, monkeypatch):
    """A weights file brings no names, and is of as many classes as ImageNet to the example."""
    arguments = ["photo.jpg", "--model", "DFvTT", "--weights", "preset/model.weights.h5", "--classes", "5"]
    assert example.main(arguments) == 0
    printed = capsys.readouterr()
    assert re.fullmatch(r"photo.jpg\n(  +[0-9.]+%  class [0-4]\n){5}", printed.out)
    assert "Classes have no names here. `predictions` must be of shape (batch, 1000)." in printed.err


MISTAKES = {
    "a missing image": (["no.jpg"], "'no.jpg' is no image that can be read: "),
    "no image": (["preset/config.json"], "is no image that can be read: cannot identify image file"),
    "no builder": (["photo.jpg", "--model", "ResNet"], "--model must be a builder .* Received: 'ResNet'"),
    "no classifier": (["photo.jpg", "--model", "RetinaNet"], "--model must be a builder"),
    "no model": (["photo.jpg", "--model", "list_presets"], "--model must be a builder"),
    "no weights": (["photo.jpg", "--model", "DFvTT", "--weights", "none"], "Weights must be None, .* Received: 'none'"),
    "no figure": (
        ["photo.jpg", "--model", "DFvTT", "--weights", "preset", "--classes", "5", "--draw", "no/top.png"],
        "--draw 'no/top.png' cannot be written: ",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_clear_message(name, example, capsys):
    arguments, message = MISTAKES[name]
    assert example.main(arguments) == 2
    assert re.search(f"^classify_image.py: .*{message}", capsys.readouterr().err)


def test_what_the_example_needs_is_named(example, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert example.main(["photo.jpg"]) == 2
    assert capsys.readouterr().err == "classify_image.py: This example needs pillow: pip install pillow\n"
    assert not os.path.exists(tmp_path / "home")
