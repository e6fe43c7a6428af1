"""Weights files, archives and preset folders give back what went in, or change nothing."""

import os

import h5py
import keras
import numpy as np
import pytest
from helpers import RUN_EAGERLY
from helpers import TINY
from helpers import images
from helpers import randomize
from helpers import tiny_model
from helpers import to_numpy

import keras_dualstream
from keras_dualstream.presets.checksums import sha256_of
from keras_dualstream.presets.checksums import write_sums
from keras_dualstream.presets.folder import PRESET_FILES


def predict(model):
    return model.predict(100 * images(2, 32, 40, 3), verbose=0)


def values(model):
    return {weight.path: to_numpy(weight) for weight in model.weights if "seed_generator" not in weight.path}


def assert_same(model, before):
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, before[path])


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(token_label_head=False, classifier_activation=None),
        dict(data_format="channels_first", input_shape=(3, 32, 40)),
        dict(dtype="mixed_bfloat16", remat=True, drop_path_rate=0.2),
    ],
)
def test_a_keras_archive_gives_an_equal_model(options, tmp_path):
    model = randomize(tiny_model(**options))
    x = 100 * images(2, *model.input_shape[1:])
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert type(restored) is keras_dualstream.ImageClassifier
    assert restored.get_config() == model.get_config()
    np.testing.assert_array_equal(restored.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_backbone_is_equal_to_the_one_of_its_config():
    backbone = keras_dualstream.DualViTBackbone(image_shape=(32, 40, 3), pooling="max", **TINY)
    restored = keras_dualstream.DualViTBackbone.from_config(backbone.get_config())
    assert restored.get_config() == backbone.get_config()
    restored.set_weights(randomize(backbone).get_weights())
    np.testing.assert_array_equal(predict(restored), predict(backbone))


def test_frozen_layers_and_the_optimizer_survive_an_archive(tmp_path):
    model = tiny_model()
    model.backbone.trainable = False
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", run_eagerly=RUN_EAGERLY)
    x, y = 100 * images(4, 32, 40, 3), np.arange(4)
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert [weight.path for weight in restored.trainable_weights] == [weight.path for weight in model.trainable_weights]
    assert all("block1" not in weight.path for weight in restored.trainable_weights)
    for found, expected in zip(restored.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(found), to_numpy(expected))


def test_a_weights_file_gives_back_every_weight(tmp_path):
    model = randomize(tiny_model())
    model.save_weights(tmp_path / "a.weights.h5")
    other = tiny_model()
    other.load_weights(tmp_path / "a.weights.h5")
    assert_same(other, values(model))
    np.testing.assert_array_equal(predict(other), predict(model))


def test_one_weights_file_serves_every_head(tmp_path):
    path = str(tmp_path / "a.weights.h5")
    model = randomize(tiny_model(classes=5))
    model.save_weights(path)
    expected = values(model.backbone)
    headless = keras_dualstream.DualViTS(include_top=False, weights=path, input_shape=(64, 64, 3), **TINY)
    assert_same(headless, expected)
    pooled = keras_dualstream.DualViTS(
        include_top=False, pooling="avg", weights=path, include_preprocessing=False, **TINY
    )
    assert_same(pooled, expected)
    with pytest.warns(UserWarning, match="these layers are new: classifier, token_classifier"):
        other = tiny_model(classes=7, weights=path, include_preprocessing=False)
    assert_same(other.backbone, expected)
    np.testing.assert_array_equal(
        to_numpy(other.get_layer("class_block").norm1.gamma), to_numpy(model.get_layer("class_block").norm1.gamma)
    )
    assert_same(tiny_model(classes=5, weights=path), values(model))


@pytest.mark.parametrize("save", ["headless", "backbone"])
def test_a_weights_file_without_head_leaves_the_head_new(save, tmp_path):
    path = str(tmp_path / "a.weights.h5")
    source = keras_dualstream.DualViTS(include_top=False, **TINY) if save == "headless" else tiny_model().backbone
    randomize(source).save_weights(path)
    with pytest.warns(UserWarning, match="these layers are new: class_block, classifier, token_classifier"):
        model = tiny_model(weights=path)
    assert_same(model.backbone, values(source))


def test_new_heads_are_no_surprise_of_load_weights(tmp_path):
    """Asked to load a whole model, Keras refuses what does not fit; so does this, and nothing is changed."""
    tiny_model(classes=5).save_weights(tmp_path / "a.weights.h5")
    model = randomize(tiny_model(classes=7))
    before = values(model)
    with pytest.raises(ValueError, match="classifier"):
        model.load_weights(tmp_path / "a.weights.h5")
    assert_same(model, before)
    model.backbone.load_weights(tmp_path / "a.weights.h5")
    with pytest.warns(UserWarning, match="could not be loaded"):
        model.load_weights(tmp_path / "a.weights.h5", skip_mismatch=True)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_damaged_weights_file_is_refused_and_changes_nothing(damage, tmp_path):
    path = tmp_path / "a.weights.h5"
    tiny_model().save_weights(path)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "text": b"<html>", "empty": b""}[damage])
    model = randomize(tiny_model())
    before = values(model)
    with pytest.raises(ValueError, match="a.weights.h5' is damaged or not HDF5"):
        model.load_weights(path)
    assert_same(model, before)
    with pytest.raises(ValueError, match="is damaged or not HDF5"):
        tiny_model(weights=path)


def test_a_weights_file_that_declares_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "a.weights.h5"
    tiny_model().save_weights(path)
    with h5py.File(path, "a") as file:
        file.create_dataset("stem/vars/9", shape=(2**40,), dtype="float32", chunks=(2**20,))
    with pytest.raises(ValueError, match="it declares more than a file of [0-9]+ bytes holds"):
        tiny_model().load_weights(path)


def test_a_weights_file_holds_the_optimizer_for_those_who_go_on_training(tmp_path):
    x, y = 100 * images(4, 32, 40, 3), np.arange(4)

    def trained(epochs):
        model = tiny_model()
        optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
        model.compile(optimizer, "sparse_categorical_crossentropy", run_eagerly=RUN_EAGERLY)
        model.optimizer.build(model.trainable_variables)
        model.fit(x, y, epochs=epochs, verbose=0)
        return model

    model, other = trained(3), trained(1)
    path = str(tmp_path / "a.weights.h5")
    model.save_weights(path)
    other.load_weights(path)
    assert int(other.optimizer.iterations) == 3
    for found, expected in zip(other.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(found), to_numpy(expected))
    assert_same(tiny_model(weights=path), values(model))


def test_weights_are_loaded_behind_a_users_own_layers(tmp_path):
    path = str(tmp_path / "a.weights.h5")
    source = randomize(tiny_model())
    source.save_weights(path)
    gray = keras.Input((32, 40, 1), name="gray")
    rgb = keras.layers.Conv2D(3, 1, name="to_rgb", data_format="channels_last")(gray)
    model = tiny_model(None, input_tensor=rgb, weights=path)
    found = values(model)
    assert all((found[name] == value).all() for name, value in values(source).items())


def test_what_was_frozen_stays_frozen_in_another_model(tmp_path):
    backbone = keras_dualstream.DualViTS(include_top=False, pooling="avg", input_shape=(32, 40, 3), **TINY)
    backbone.trainable = False
    model = keras.Model(backbone.input, keras.layers.Dense(3)(backbone.output))
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert len(model.trainable_weights) == len(restored.trainable_weights) == 2
    backbone.save_to_preset(tmp_path / "preset")
    other = keras_dualstream.DualViTBackbone.from_preset(tmp_path / "preset", include_preprocessing=False)
    assert not other.trainable_weights


def test_a_missing_weights_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="The weights file does not exist. Received: .*none.weights.h5"):
        tiny_model().load_weights(tmp_path / "none.weights.h5")


def test_weights_of_another_variant_are_refused(tmp_path):
    keras_dualstream.DualViTBackbone(**{**TINY, "embed_dims": (8, 16, 24, 48)}).save_weights(tmp_path / "a.weights.h5")
    model = randomize(tiny_model())
    before = values(model)
    with pytest.raises(ValueError, match="stage4"):
        model.load_weights(tmp_path / "a.weights.h5")
    assert_same(model, before)


@pytest.mark.parametrize("load", ["load_weights", "weights="])
def test_weights_of_a_deeper_model_are_refused(load, tmp_path):
    path = str(tmp_path / "a.weights.h5")
    tiny_model(depths=(1, 1, 2, 2)).save_weights(path)
    with pytest.raises(ValueError, match="is of a larger model.* has more weights of: stage4_block2$"):
        tiny_model(weights=path) if load == "weights=" else tiny_model().load_weights(path)


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.weights.h5"
    model = tiny_model()
    model.save_weights(path)
    content = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(keras.saving, "save_weights", full)
    with pytest.raises(OSError, match="No space left"):
        model.save_weights(path)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["a.weights.h5"]


def test_overwrite_can_be_forbidden(tmp_path):
    model = tiny_model()
    model.save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match="exists and `overwrite=False`"):
        model.save_weights(tmp_path / "a.weights.h5", overwrite=False)


def test_activation_with_weights_is_limited(tmp_path):
    path = str(tmp_path / "a.weights.h5")
    tiny_model().save_weights(path)
    assert tiny_model(weights=path, classifier_activation=None).classifier_activation is keras.activations.linear
    with pytest.raises(ValueError, match="must be None or 'softmax'. Received: classifier_activation='sigmoid'"):
        tiny_model(weights=path, classifier_activation="sigmoid")


def test_other_channels_do_not_fit_a_weights_file(tmp_path):
    path = str(tmp_path / "a.weights.h5")
    tiny_model().save_weights(path)
    with pytest.raises(ValueError, match="stem_conv1"):
        tiny_model((32, 40, 4), weights=path)


def test_a_preset_folder_gives_back_the_backbone(tmp_path):
    backbone = randomize(keras_dualstream.DualViTBackbone(image_shape=(32, 40, 3), **TINY))
    backbone.save_to_preset(tmp_path / "preset")
    assert sorted(os.listdir(tmp_path / "preset")) == ["SHA256SUMS", "config.json", "model.weights.h5", "preset.json"]
    restored = keras_dualstream.DualViTBackbone.from_preset(tmp_path / "preset")
    assert restored.get_config() == backbone.get_config()
    np.testing.assert_array_equal(predict(restored), predict(backbone))
    new = keras_dualstream.DualViTBackbone.from_preset(tmp_path / "preset", load_weights=False, image_shape=(64, 64, 3))
    assert new.input_shape == (None, 64, 64, 3)
    assert (to_numpy(new.get_layer("stem_conv1").kernel) != to_numpy(backbone.get_layer("stem_conv1").kernel)).any()
    with pytest.warns(UserWarning, match="these layers are new"):
        assert_same(tiny_model(weights=tmp_path / "preset").backbone, values(backbone))


def test_a_damaged_preset_folder_says_what_is_wrong(tmp_path):
    folder = tmp_path / "preset"
    load = keras_dualstream.DualViTBackbone.from_preset
    with pytest.raises(ValueError, match="or the path of an existing .* preset folder. .* Received: .*preset"):
        load(folder)
    keras_dualstream.DualViTBackbone(**TINY).save_to_preset(folder)
    config, info, sums = ((folder / name).read_text() for name in ("config.json", "preset.json", "SHA256SUMS"))
    for name, content, message in [
        ("config.json", config[:50], "config.json' cannot be read; save the preset again"),
        ("config.json", "[]", "config.json' must hold a dict"),
        ("config.json", config.replace('"config":', '"other":'), "does not describe a backbone"),
        ("config.json", config.replace('"stem_dim"', '"window"'), "do not fit DualViTBackbone. Cause: .*window"),
        ("config.json", config.replace("DualViTBackbone", "OtherBackbone"), "holds a OtherBackbone"),
        ("preset.json", "{}", "preset.json' does not describe weights. Cause: 'preprocessing'"),
        ("preset.json", info.replace("0.875", "7"), r"does not describe weights. Cause: `crop` must be in \(0, 1\]"),
        ("preset.json", info.replace("licence", "license"), "does not describe weights. Cause: .*'license'"),
    ]:
        old = (folder / name).read_text()
        (folder / name).write_text(content)
        with pytest.raises(
            ValueError, match=f"`{name}` of the preset folder .* is not the one that was saved: its SHA"
        ):
            load(folder)
        write_sums(folder / "SHA256SUMS", {file: sha256_of(folder / file) for file in PRESET_FILES[1:]})
        with pytest.raises(ValueError, match=message):
            load(folder)
        (folder / name).write_text(old)
        (folder / "SHA256SUMS").write_text(sums)
    weights = (folder / "model.weights.h5").read_bytes()
    (folder / "model.weights.h5").write_bytes(weights[:1000])
    with pytest.raises(ValueError, match="`model.weights.h5` of the preset folder .* is not the one that was saved"):
        load(folder)
    for name in reversed(PRESET_FILES):  # SHA256SUMS is looked for first
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"has no file `{name}`"):
            load(folder)
        with pytest.raises(ValueError, match=f"has no file `{name}`"):
            tiny_model(weights=folder)
