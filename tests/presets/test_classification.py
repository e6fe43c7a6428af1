"""Photographs are cut as the evaluations cut them, and classes have their names."""

import json
import urllib.parse

import keras
import numpy as np
import pytest
from helpers import one_backend

import keras_dualstream
from keras_dualstream import Preprocessing
from keras_dualstream import decode_predictions
from keras_dualstream import preprocess_input

pytestmark = one_backend


def photo(height, width, seed=0):
    """Noise on waves: what a resize without antialiasing would get wrong."""
    y, x, channel = np.mgrid[:height, :width, :3]
    waves = 127 + 90 * np.sin(x / (3 + channel)) * np.cos(y / 5)
    return np.clip(waves + np.random.default_rng(seed).normal(0, 20, waves.shape), 0, 255).astype("uint8")


def by_pillow(image, size, crop):
    """Resize of the shorter side and centre crop as torchvision has them."""
    from PIL import Image

    height, width = image.shape[:2]
    short = round(size / crop)
    shape = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    resized = np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BICUBIC))
    top, left = (round((side - size) / 2) for side in resized.shape[:2])
    return resized[top : top + size, left : left + size].astype("float32")


# Pillow resizes in the other order where an image is more than twice as high as wide.
@pytest.mark.parametrize("shape", [(480, 640), (333, 251), (100, 90), (250, 700), (224, 224), (249, 249)])
@pytest.mark.parametrize(("preset", "size", "crop"), [("transxnet_t_224", 224, 0.9), ("dualvit_b_384", 384, 0.96)])
def test_images_are_those_of_pillow(shape, preset, size, crop):
    image = photo(*shape)
    found, expected = preprocess_input(image, preset), by_pillow(image, size, crop)
    assert found.shape == (size, size, 3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_every_preset_knows_its_own():
    """The sizes that the published evaluations resize to."""
    sizes = {name: name.removesuffix("_pytorch")[-3:] for name in keras_dualstream.list_presets()}
    resized = {"transxnet_b_224": 236, "transxnet_b_384": 404, "transxnet_t_224": 249, "transxnet_s_224": 249}
    resized |= {name: {"224": 233, "384": 400}[size] for name, size in sizes.items() if name.startswith("dualvit")}
    image = photo(60, 60)
    for name, size in sizes.items():
        expected = preprocess_input(image, Preprocessing(int(size), int(size) / resized.get(name, 256)))
        np.testing.assert_array_equal(preprocess_input(image, name), expected, err_msg=name)
    np.testing.assert_array_equal(preprocess_input(image, "TransXNetB"), preprocess_input(image, "transxnet_b_224"))
    np.testing.assert_array_equal(preprocess_input(image), preprocess_input(image, "dfvt_t_224"))


def test_batches_lists_and_tensors_are_taken():
    images = [photo(40, 60), photo(50, 30, seed=1)]
    expected = np.stack([preprocess_input(image) for image in images])
    np.testing.assert_array_equal(preprocess_input(images), expected)
    np.testing.assert_array_equal(preprocess_input(np.stack([images[0]] * 2))[1], expected[0])
    np.testing.assert_array_equal(preprocess_input(keras.ops.convert_to_tensor(images[0])), expected[0])
    first = preprocess_input(images[0].transpose(2, 0, 1), data_format="channels_first")
    np.testing.assert_array_equal(first, expected[0].transpose(2, 0, 1))


def test_normalised_images_are_what_a_model_makes_of_them():
    preprocessing = Preprocessing((16, 24), 0.8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    image = photo(40, 60)
    pixels = preprocess_input(image, preprocessing)
    assert pixels.shape == (16, 24, 3)
    expected = (pixels / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(preprocess_input(image, preprocessing, normalize=True), expected, rtol=1e-5, atol=1e-6)


def test_rectangles_are_covered():
    assert Preprocessing((100, 200), 0.8).resized_size == (125, 250)
    for shape in [(30, 300), (300, 30), (125, 250)]:
        assert preprocess_input(photo(*shape), Preprocessing((100, 200), 0.8)).shape == (100, 200, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(images=np.ones((20, 20))), r"Images must be RGB, \(height, width, 3\). Received: .* shape \(20, 20\)"),
        (dict(images=np.ones((20, 20, 1))), r"Images must be RGB"),
        (dict(images=np.ones((20, 20, 3)), data_format="channels_first"), r"RGB, \(3, height, width\)"),
        (dict(images=[]), "`images` must have at least one image"),
        (
            dict(images=np.ones((20, 20, 3)), data_format="last"),
            "`data_format` must be .* Received: data_format='last'",
        ),
        (dict(images=np.ones((20, 20, 3)), preset="resnet"), "Weights must be None, .* Received: 'resnet'"),
    ],
)
def test_what_is_no_photograph_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        preprocess_input(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(image_size=0), "`image_size` must be a positive int or a pair. Received: image_size=0"),
        (dict(image_size=(1, 2, 3)), "`image_size` must be"),
        (dict(image_size="224"), "`image_size` must be"),
        (dict(crop=0), r"`crop` must be in \(0, 1\]. Received: crop=0"),
        (dict(crop=float("nan")), "`crop` must be"),
        (dict(mean=(0, 0)), r"`mean` must be three numbers. Received: \(0, 0\)"),
        (dict(std=(1, 1, 0)), r"`std` must be three positive numbers. Received: \(1, 1, 0\)"),
    ],
)
def test_a_preprocessing_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**options)


PREDICTIONS = np.array([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]], "float32")


def test_classes_of_a_preset_have_its_names(tmp_path):
    backbone = keras_dualstream.DFvTBackbone(embed_dim=32, num_heads=(1, 2, 4, 8))
    backbone.save_to_preset(tmp_path, class_names=["cat", "dog", "eel"])
    found = decode_predictions(keras.ops.convert_to_tensor(PREDICTIONS), top=2, preset=tmp_path)
    assert [[name for _, name, _ in image] for image in found] == [["dog", "eel"], ["cat", "eel"]]
    assert found[0][0] == ("dog", "dog", PREDICTIONS[0, 1])
    with pytest.raises(ValueError, match=r"`predictions` must be of shape \(batch, 3\). Received: shape \(2, 1000\)"):
        decode_predictions(np.ones((2, 1000)), preset=tmp_path)


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    """Keras in an empty folder, knowing no classes yet."""
    from keras.src.applications import imagenet_utils
    from keras.src.backend import config

    monkeypatch.setattr(imagenet_utils, "CLASS_INDEX", None)
    monkeypatch.setattr(config, "_KERAS_DIR", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return imagenet_utils


def test_classes_of_imagenet_have_the_names_of_keras(keras_home, monkeypatch):
    index = {str(i): [f"n{i:08}", f"class {i}"] for i in range(1000)}
    monkeypatch.setattr(keras_home, "CLASS_INDEX", json.loads(json.dumps(index)))
    predictions = np.zeros((1, 1000), "float32")
    predictions[0, [3, 7]] = 0.2, 0.8
    for preset in (None, "transxnet_t_224", "DFvTT"):
        found = decode_predictions(predictions, top=2, preset=preset)
        assert [item[:2] for item in found[0]] == [("n00000007", "class 7"), ("n00000003", "class 3")]
    with pytest.raises(ValueError, match=r"`predictions` must be of shape \(batch, 1000\). Received: shape \(1000,\)"):
        decode_predictions(predictions[0])


def test_names_that_cannot_be_downloaded_say_where_to_put_them(keras_home, server, monkeypatch, cache):
    path = cache.parent / "imagenet_class_index.json"
    by_hand = f"Keras looks for them at '{path}' first: put its file `imagenet_class_index.json` there by hand."
    monkeypatch.setattr(keras_home, "CLASS_INDEX_PATH", f"{server.url}/{urllib.parse.quote('no index')}")
    with pytest.raises(OSError, match="could not be downloaded: URL fetch failure on .*: 404 -- Not Found. ") as error:
        decode_predictions(np.ones((1, 1000)))
    assert by_hand in str(error.value)
    count = len(server.requests)
    monkeypatch.setenv("KERAS_DUALSTREAM_OFFLINE", "1")
    with pytest.raises(OSError, match="KERAS_DUALSTREAM_OFFLINE or HF_HUB_OFFLINE keeps this process from") as error:
        decode_predictions(np.ones((1, 1000)))
    assert by_hand in str(error.value)
    assert len(server.requests) == count
