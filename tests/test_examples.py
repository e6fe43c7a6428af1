"""The example runs on every kind of data and explains what the user can mend."""

import functools
import importlib.util
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import RUN_EAGERLY
from helpers import TINY_DFVT
from helpers import slow_on

import keras_dualstream

SCRIPT = pathlib.Path(__file__).parent.parent / "examples" / "transfer_learning.py"
BACKEND = keras.config.backend()


def load_example(script=SCRIPT):
    specification = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def example(monkeypatch):
    """The example as a module, with a small DFvTT, since it builds and trains the model four times.

    Eagerly on TensorFlow, which takes two minutes to trace the training steps.
    """
    builder = keras_dualstream.DFvTT

    @functools.wraps(builder)
    def small(**options):
        return builder(**{**TINY_DFVT, "depths": (1, 1, 1, 1), **options})

    monkeypatch.setattr(keras_dualstream, "DFvTT", small)
    monkeypatch.setattr(keras.Model, "compile", functools.partialmethod(keras.Model.compile, run_eagerly=RUN_EAGERLY))
    return load_example()


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory):
    """Six classes of eight images of different sizes and modes, one a transparent PNG, and a file that is no image."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label in range(6):
        (folder / f"kind {label}").mkdir()
        for index in range(8):
            channels = (1, 3, 4)[index % 3]
            pixels = 40 * label + 20 * rng.random((20 + index, 30, channels))
            keras.utils.save_img(folder / f"kind {label}" / f"{index}.png", pixels, scale=False)
        (folder / f"kind {label}" / "notes.txt").write_text("no image")
    return folder


def run(*arguments, **environment):
    """The example in a process of its own: its exit status and what it printed as errors."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    command = [sys.executable, str(SCRIPT), "--backend", BACKEND, *map(str, arguments)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    return process.returncode, process.stderr


# Most of it is the export, in a process of TensorFlow on every backend.
@slow_on("jax", "torch")
def test_runs_from_a_folder_to_a_figure(example, photo_folder, tmp_path, capfd):
    output = tmp_path / "new" / "output"
    arguments = ["--backend", BACKEND, "--data", str(photo_folder), "--output", str(output), "--image-size", "32"]
    arguments += ["--model", "DFvTT"]
    status = example.main([*arguments, "--epochs", "2", "--labelled", "2"])
    printed = capfd.readouterr().out
    assert status == 0
    for text in (
        "48 images of 6 classes",
        "1/6 Training DFvTT on kind 0, kind 1, kind 2",
        "SavedModel: ",
        "TFLite: ",
        "kind 3 to kind 5, frozen untrained backbone",
        "kind 3 to kind 5, frozen transferred backbone",
        "kind 3 to kind 5, fine-tuned",
    ):
        assert text in printed, text
    assert (output / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert {"source.weights.h5", "model.keras", "model.tflite", "saved_model"} <= set(os.listdir(output))


class Line(keras.Sequential):
    """Something to train that compiles at once."""

    def __init__(self):
        super().__init__([keras.Input((4,)), keras.layers.Dense(2)])

    def compile(self, optimizer, loss="mse", **options):
        super().compile(optimizer, "mse")


@pytest.mark.parametrize("name", ["transfer_learning", "object_detection"])
def test_the_learning_rate_follows_its_schedule_batch_by_batch(name):
    example, line = load_example(SCRIPT.with_stem(name)), Line()
    x, y = np.ones((96, 4)), np.ones((96, 2))
    if name == "object_detection":
        example.train(line, x, y, epochs=5, learning_rate=0.5, batch_size=16)
    else:
        import tensorflow as tf

        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
        example.train(line, data, data, epochs=5, learning_rate=0.5)
    assert int(line.optimizer.iterations) == 30
    # The last of 27 steps after the warm-up of three.
    assert float(line.optimizer.learning_rate) == pytest.approx(0.25 * (1 + np.cos(np.pi * 26 / 27)), rel=1e-4)


def test_digits_are_real_scans_on_a_canvas():
    example = load_example()
    images, labels, names = example.load_images("digits", 48, 10)
    assert images.shape == (100, 48, 48, 3)
    assert images.dtype == np.uint8
    assert names == list("0123456789")
    np.testing.assert_array_equal(np.bincount(labels), 10)
    again, _, _ = example.load_images("digits", 48, 10)
    np.testing.assert_array_equal(images, again)


def test_reads_a_dataset_of_tensorflow_datasets(tmp_path, monkeypatch, photo_folder):
    """An image folder of TensorFlow Datasets, prepared as its own tools prepare a download, is read by its name."""
    import tensorflow_datasets as tfds

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train").symlink_to(photo_folder, target_is_directory=True)
    folder = tfds.ImageFolder(tmp_path / "folder", shape=(None, None, 3))
    prepared = tmp_path / "photo_kinds" / "1.0.0"
    prepared.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="photo_kinds", version=tfds.core.Version("1.0.0"), data_dir=str(prepared), module_name="photo_kinds"
    )
    info = tfds.core.DatasetInfo(builder=identity, features=folder.info.features)
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=100)
    writer.initialize_splits(["train"])
    writer.add_examples({"train": list(tfds.as_numpy(folder.as_dataset(split="train")))})
    writer.close_all()
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))

    example = load_example()
    images, labels, names = example.load_images("tfds:photo_kinds", 32, None)
    assert names == [f"kind {label}" for label in range(6)]
    np.testing.assert_array_equal(np.bincount(labels), 8)
    for image, label in zip(images, labels, strict=True):
        assert 40 * label <= image.mean() <= 40 * label + 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "ResNet50"],
            "DualViTS, TransXNetB, TransXNetS, TransXNetT. Received: 'ResNet50'",
        ),
        (["--output", SCRIPT / "inside a file"], "is not a folder that can be written to: Not a directory"),
        (["--data", "no such folder"], "--data must be 'digits', an existing folder or tfds:NAME. Received"),
        (["--data", "tfds:no_such_dataset"], "TensorFlow Datasets cannot give 'no_such_dataset'"),
        (["--epochs", "0"], "--epochs must be at least 1. Received: 0"),
        (["--images-per-class", "4"], "--images-per-class must be at least 5. Received: 4"),
        (["--backend", "theano"], "invalid choice: 'theano'"),
    ],
)
def test_a_mistake_gets_one_clear_message(arguments, message, tmp_path):
    status, errors = run("--output", tmp_path, *arguments)
    assert status == 2
    assert message in errors
    assert "Traceback" not in errors


def test_too_few_classes_are_named(tmp_path):
    example = load_example()
    (tmp_path / "only one").mkdir()
    with pytest.raises(example.Problem, match="must have at least 4 classes"):
        example.load_images(str(tmp_path), 32, None)


def test_splits_keep_every_class_and_share_nothing():
    example = load_example()
    labels = np.repeat(np.arange(3), (10, 20, 5))
    parts = example.split(labels)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(35))
    for part, counts in zip(parts, [(7, 14, 3), (1, 2, 1), (2, 4, 1)], strict=True):
        np.testing.assert_array_equal(np.bincount(labels[part]), counts)
