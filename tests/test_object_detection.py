"""The detection example: its scenes have exact boxes, its score is COCO's, and it runs from training to the figure."""

import importlib.util
import os
import pathlib

import keras
import numpy as np
import pytest

pytest.importorskip("keras_hub")
pytest.importorskip("faster_coco_eval")

SCRIPT = pathlib.Path(__file__).parent.parent / "examples" / "object_detection.py"

# On one backend: a training step of a detector takes minutes to trace on TensorFlow and to compile on JAX. The
# example's training loop runs on each in test_examples.py.
pytestmark = pytest.mark.skipif(keras.config.backend() != "torch", reason="the example's default backend")


@pytest.fixture(scope="module")
def example():
    specification = importlib.util.spec_from_file_location("object_detection", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_runs_from_scenes_to_a_figure(example, tmp_path, capfd):
    output = tmp_path / "new" / "output"
    arguments = ["--backend", "torch", "--scenes", "2", "--test-scenes", "2", "--epochs", "1", "--output", str(output)]
    assert example.main(arguments) == 0
    printed = capfd.readouterr().out
    for text in (
        "1/4 Training RetinaNet on the plain FPN",
        "2/4 Training RetinaNet on the DS-FPN",
        "plain FPN: logits and offsets differ by at most ",
        "DS-FPN: logits and offsets differ by at most ",
        "pyramid     parameters  GMACs  images/s    mAP  mAP50  training",
    ):
        assert text in printed, text
    table = {
        line[:10].strip(): line[10:].split() for line in printed.splitlines() if line[:10].strip() in example.PYRAMIDS
    }
    assert table["plain FPN"][0] == "1,994,147"
    assert table["DS-FPN"][0] == "2,914,099"
    assert float(table["plain FPN"][1]) < float(table["DS-FPN"][1])
    assert (output / "detections.png").read_bytes().startswith(b"\x89PNG")
    assert {"plain_fpn.keras", "ds_fpn.keras"} <= set(os.listdir(output))


def test_scenes_hold_whole_digits_in_exact_boxes(example):
    black, scan = np.zeros((200, 300, 3), "uint8"), np.zeros((8, 8), "float32")
    scan[:, 2:5] = 1
    images, truth = example.compose_scenes(20, 128, [black], scan[None], np.array([4]), seed=0)
    assert images.shape == (20, 128, 128, 3)
    assert images.dtype == np.uint8
    counts = (truth["labels"] >= 0).sum(axis=1)
    assert set(counts) == {1, 2, 3, 4, 5}
    for image, boxes, labels in zip(images, truth["boxes"], truth["labels"], strict=True):
        inside = np.zeros((128, 128), bool)
        for left, top, right, bottom in boxes[labels >= 0].astype(int):
            assert not inside[top:bottom, left:right].any()
            inside[top:bottom, left:right] = True
            part = image[top:bottom, left:right].max(axis=-1)
            assert part.min() > 80
            assert 16 <= bottom - top <= 64
        assert set(labels) <= {-1, 4}
        if (labels >= 0).sum() == 1:
            assert image.max(axis=-1)[~inside].max() < 128
    again, _ = example.compose_scenes(20, 128, [black], scan[None], np.array([4]), seed=0)
    np.testing.assert_array_equal(images, again)


def test_scenes_may_be_larger_than_the_photographs(example):
    black, scan = np.zeros((300, 400, 3), "uint8"), np.ones((8, 8), "float32")
    images, truth = example.compose_scenes(1, 512, [black], scan[None], np.array([4]), seed=0)
    assert images.shape == (1, 512, 512, 3)
    assert truth["boxes"].max() > 128


def test_training_and_test_scenes_share_neither_photographs_nor_digits(example):
    train, test = example.load_photographs()
    assert not any(np.array_equal(a, b) for a in train for b in test)
    (scans, labels), (test_scans, test_labels) = example.load_scans()
    assert (len(scans), len(test_scans)) == (1347, 450)
    assert set(labels) == set(test_labels) == set(range(10))
    assert scans.max() == 1


def test_average_precision_is_cocos(example):
    truth = {
        "boxes": np.array([[[0, 0, 40, 40], [60, 60, 100, 100]], [[10, 10, 50, 50], [-1] * 4]], "float32"),
        "labels": np.array([[3, 3], [3, -1]], "float32"),
    }
    found = {
        "boxes": np.array([[[0, 0, 40, 40], [60, 60, 100, 93]], [[10, 10, 50, 50], [0, 0, 9, 9]]], "float32"),
        "labels": np.array([[3, 3], [5, -1]]),
        "confidence": np.array([[0.9, 0.8], [0.7, -1]], "float32"),
    }
    precision, precision50 = example.average_precision(found, truth)
    # Two of three threes are found; the second's IoU of 0.825 counts up to the seventh of the ten thresholds.
    assert precision50 == pytest.approx(67 / 101)
    assert precision == pytest.approx((7 * 67 + 3 * 34) / 1010)
    nothing = {**found, "confidence": np.full((2, 2), -1.0)}
    assert example.average_precision(nothing, truth) == (0.0, 0.0)


def test_overlaps_are_those_of_the_definition(example):
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 40]], "float32")
    np.testing.assert_allclose(example.iou(boxes, boxes[:2]), [[1, 1 / 3], [1 / 3, 1], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-size", "200"], "--image-size must be divisible by 128. Received: 200"),
        (["--epochs", "0"], "--epochs must be at least 1. Received: 0"),
        (["--output", str(SCRIPT / "inside a file")], "is not a folder that can be written to: Not a directory"),
    ],
)
def test_a_mistake_gets_one_clear_message(example, arguments, message, capsys):
    try:
        status = example.main(["--backend", "torch", *arguments])
    except SystemExit as exit_:
        status = exit_.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named(example, monkeypatch, tmp_path, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "keras_hub" else find(name))
    assert example.main(["--backend", "torch", "--output", str(tmp_path)]) == 2
    assert "This example needs keras-hub: pip install keras-hub" in capsys.readouterr().err
