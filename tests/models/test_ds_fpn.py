"""DS-FPN: the table's parameters, what is connected to what, any backbone, and what comes back from a file."""

import functools
import inspect
import json
import pathlib

import keras
import numpy as np
import pytest
from helpers import RUN_EAGERLY
from helpers import TINY
from helpers import TINY_DFVT
from helpers import TINY_DSNET
from helpers import TINY_TRANSXNET
from helpers import compiled
from helpers import gradient_function
from helpers import images
from helpers import randomize
from helpers import relative_error
from helpers import to_numpy
from keras import ops

import keras_dualstream
from keras_dualstream import DSFPN
from keras_dualstream.layers import PatchEmbedding
from keras_dualstream.models.ds_fpn import POSITIONS

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
LEVELS = ("P3", "P4", "P5", "P6", "P7")


def plain(image_shape=(130, 150, 3), widths=(12, 17, 20), dtype=None):
    """A user's own functional model; on 130 × 150 its maps have 16 × 18, 8 × 9 and 4 × 4 positions."""
    inputs = x = keras.Input(image_shape, dtype=dtype, name="photos")
    maps = {}
    for level, width in zip(LEVELS, widths, strict=False):
        size = 8 if level == "P3" else 2
        x = PatchEmbedding(width, size, size, normalization=None, padding=0, dtype=dtype, name=f"cut_{level}")(x)
        maps[level] = x
    model = keras.Model(inputs, keras.layers.GlobalMaxPooling2D(data_format="channels_last")(x), name="plain")
    model.pyramid_outputs = maps
    return model


def maps_of_size(*sizes, channels=8):
    """A backbone's maps alone, as the dict that `DSFPN` takes."""
    return {level: keras.Input((*size, channels), name=level) for level, size in zip(LEVELS, sizes, strict=False)}


def tiny(backbone=None, position="lateral_extra", **options):
    backbone = plain() if backbone is None else backbone
    return DSFPN(backbone, position, **{"channels": 8, "attention_dropout_rate": 0.0, **options})


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@functools.cache
def published(position):
    """The paper's pyramid on DS-Net-T without alignment."""
    backbone = keras_dualstream.DSNetBackbone(inter_scale_alignment=False) if position is None else published(None)
    return DSFPN(backbone if position is None else backbone.backbone, position)


def convolution(channels, filters):
    return 9 * channels * filters + filters


# Two towers, boxes and classes of nine anchors, and the final normalisation that the paper's backbone has.
DETECTOR = 8 * convolution(256, 256) + convolution(256, 9 * 80) + convolution(256, 9 * 4) + 2 * 512

TABLE_6 = {
    None: 18_832_820,
    "last": 19_596_596,
    "lateral": 23_723_732,
    "lateral_rev": 21_366_836,
    "lateral_extra": 24_430_036,
}


@pytest.mark.parametrize("position", TABLE_6)
def test_every_position_has_the_parameters_of_table_6(position):
    assert set(TABLE_6) == set(POSITIONS)
    assert trainable(published(position)) + DETECTOR == TABLE_6[position]
    row = next(line for line in README.splitlines() if line.startswith(f'| `"{position}"`' if position else "| `None`"))
    assert f"| {TABLE_6[position]:,} |" in row


def test_strides_and_heads_are_the_references():
    model = published("lateral_extra")
    assert {level: x.shape for level, x in model.output.items()} == dict.fromkeys(LEVELS, (None, None, None, 256))
    blocks = [model.get_layer(f"fpn_{level}_block") for level in LEVELS]
    assert [block.global_stride for block in blocks] == [4, 2, 1, 1, 1]
    assert [block.num_heads for block in blocks] == [2, 5, 8, 4, 4]
    assert all(block.alignment is not None and block.mlp_ratio == 4 for block in blocks)


def test_heads_divide_both_streams_and_are_at_least_32_wide_where_they_can_be():
    model = tiny(plain(widths=(152, 224, 75)), "lateral")
    assert [model.get_layer(f"fpn_P{level}_block").num_heads for level in (3, 4, 5)] == [2, 2, 1]


def test_defaults():
    defaults = {name: parameter.default for name, parameter in inspect.signature(DSFPN).parameters.items()}
    assert (defaults["position"], defaults["channels"], defaults["mlp_ratio"]) == ("lateral_extra", 256, 4.0)
    assert (defaults["drop_path_rate"], defaults["attention_dropout_rate"]) == (0.0, 0.1)


def history(model, level):
    """The layers on the longest way from the backbone to a level, without those of the coarser levels it adds."""
    names, x = [], model.pyramid_outputs[level]
    while True:
        layer = x._keras_history.operation
        if not layer.name.startswith("fpn_"):
            return [layer.name, *reversed(names)]
        names.append(layer.name.removeprefix("fpn_"))
        x = layer.input[0] if isinstance(layer.input, (list, tuple)) else layer.input


CHAINS = {
    None: ("lateral top_down output", "embedding", "embedding"),
    "last": ("lateral top_down block", "embedding", "embedding"),
    "lateral": ("block lateral top_down output", "embedding", "embedding"),
    "lateral_rev": ("lateral block top_down output", "embedding", "embedding"),
    "lateral_extra": ("block lateral top_down output", "embedding block", "embedding block"),
}


@pytest.mark.parametrize("position", CHAINS)
def test_every_position_connects_as_described(position):
    model = tiny(position=position)
    near, p6, p7 = ([*chain.split()] for chain in CHAINS[position])
    for level in ("P3", "P4"):
        assert history(model, level) == [f"cut_{level}", *(f"{level}_{part}" for part in near)]
    near.remove("top_down")
    assert history(model, "P5") == ["cut_P5", *(f"P5_{part}" for part in near)]
    p6 = ["cut_P5", *(f"P6_{part}" for part in p6)]
    assert history(model, "P6") == p6
    assert history(model, "P7") == [*p6, *(f"P7_{part}" for part in p7)]
    # What comes down is the sum above, before its output layer.
    above = [model.get_layer(f"fpn_{level}_top_down").input[1]._keras_history.operation.name for level in ("P3", "P4")]
    assert above == ["fpn_P4_top_down", "fpn_P5_block" if position == "lateral_rev" else "fpn_P5_lateral"]


def convolve(x, layer, stride=1):
    """3×3 convolution with a zero on every side."""
    layer = getattr(layer, "projection", layer)
    kernel, bias = (to_numpy(weight).astype("float64") for weight in layer.weights)
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijco->bhwo", windows, kernel) + bias


def nearest(x, size):
    rows, columns = (np.arange(new) * old // new for old, new in zip(x.shape[1:3], size, strict=True))
    return x[:, rows][:, :, columns]


def test_the_plain_network_is_its_definition_on_levels_of_odd_and_unrelated_sizes():
    sizes = [(17, 9), (8, 5), (3, 2)]
    model = randomize(tiny(maps_of_size(*sizes), None, channels=6))
    maps = [images(2, *size, 8, seed=i) for i, size in enumerate(sizes)]
    merged = []
    for level, x in zip(LEVELS, maps, strict=False):
        kernel, bias = (
            to_numpy(weight).astype("float64") for weight in model.get_layer(f"fpn_{level}_lateral").weights
        )
        merged.append(x @ kernel + bias)
    for i in (1, 0):
        merged[i] = merged[i] + nearest(merged[i + 1], sizes[i])
    expected = [convolve(x, model.get_layer(f"fpn_P{i + 3}_output")) for i, x in enumerate(merged)]
    expected.append(convolve(maps[2], model.get_layer("fpn_P6_embedding"), stride=2))
    expected.append(convolve(expected[3], model.get_layer("fpn_P7_embedding"), stride=2))
    found = model.predict(maps, verbose=0)
    assert list(found) == list(LEVELS)
    for level, value in zip(LEVELS, expected, strict=True):
        assert relative_error(found[level], value) < 1e-6


BACKBONES = {
    "DSNetBackbone": TINY_DSNET,
    "DualViTBackbone": TINY,
    "DFvTBackbone": TINY_DFVT,
    "TransXNetBackbone": TINY_TRANSXNET,
}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_of_the_package_gets_a_pyramid_and_comes_back(name):
    backbone = getattr(keras_dualstream, name)(image_shape=(128, 160, 3), **BACKBONES[name])
    model = tiny(backbone, None)
    assert model.backbone is backbone
    assert {level: x.shape[1:] for level, x in model.output.items()} == dict(
        P3=(16, 20, 8), P4=(8, 10, 8), P5=(4, 5, 8), P6=(2, 3, 8), P7=(1, 2, 8)
    )
    restored = DSFPN.from_config(model.get_config())
    assert type(restored.backbone) is type(backbone)
    assert restored.get_config() == model.get_config()
    assert [weight.path for weight in restored.weights] == [weight.path for weight in model.weights]


def as_attribute():
    return plain()


def as_dict():
    return plain().pyramid_outputs


def as_output():
    model = plain()
    return keras.Model(model.input, dict(model.pyramid_outputs))


@pytest.mark.parametrize("make", [as_attribute, as_dict, as_output])
def test_a_plain_functional_model_gets_a_pyramid_however_it_gives_its_maps(make):
    model = tiny(make(), None)
    assert [model.output[level].shape[1:3] for level in LEVELS] == [(16, 18), (8, 9), (4, 4), (2, 2), (1, 1)]
    config = model.get_config()
    restored = DSFPN.from_config(config)
    assert config == restored.get_config() == model.get_config()
    assert [weight.path for weight in restored.weights] == [weight.path for weight in model.weights]
    assert model.get_layer("cut_P4") in model.backbone.layers


def test_a_detector_finds_what_it_asks_a_pyramid_for():
    model = tiny(keras_dualstream.DSNetBackbone(image_shape=(None, None, 3), **TINY_DSNET))
    assert not [part.name for part in model._flatten_layers() if not part.built]
    assert (model.image_shape, model.min_level, model.max_level) == ((None, None, 3), 3, 7)
    assert list(model.pyramid_outputs) == list(model.output) == list(LEVELS)
    maps = model(keras.Input(model.image_shape))
    assert {level: x.shape for level, x in maps.items()} == dict.fromkeys(LEVELS, (None, None, None, 8))


def predict(model, x):
    return {level: to_numpy(ops.cast(value, "float32")) for level, value in compiled(model)(x).items()}


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for level, value in expected.items():
        assert relative_error(found[level], value) < tolerance, level


def test_free_sizes_channels_first_and_half_precision_give_the_same():
    """Without DS-Blocks, like the two after it: test_every_layer.py and test_dsnet.py have them."""
    model, x = randomize(tiny(position=None)), images(2, 130, 150, 3)
    expected = predict(model, x)
    free = tiny(plain((None, None, 3)), None)
    mixed = tiny(position=None, dtype="mixed_bfloat16")
    layers = keras.layers
    photos = keras.Input((3, 130, 150))
    body = plain().pyramid_outputs
    body = keras.Model(keras.utils.get_source_inputs(body["P5"])[0], dict(body))(layers.Permute((2, 3, 1))(photos))
    first = tiny({level: layers.Permute((3, 1, 2))(y) for level, y in body.items()}, None, data_format="channels_first")
    for other in (free, mixed, first):
        other.set_weights(model.get_weights())
    assert_close(predict(free, x), expected, 1e-6)
    assert_close(predict(mixed, x), expected, 0.03)
    found = predict(first, x.transpose(0, 3, 1, 2))
    assert_close({level: y.transpose(0, 2, 3, 1) for level, y in found.items()}, expected, 1e-6)


def test_float64_stays_float64(float64):
    model, double = randomize(tiny(position=None)), tiny(plain(dtype=float64), None, dtype=float64)
    double.set_weights(model.get_weights())
    x = images(2, 130, 150, 3)
    exact = compiled(double)(ops.convert_to_tensor(x, dtype=float64))
    assert {keras.backend.standardize_dtype(y.dtype) for y in exact.values()} == {"float64"}
    assert_close(predict(model, x), {level: to_numpy(y) for level, y in exact.items()}, 2e-6)


def test_gradients_reach_every_weight():
    model = randomize(tiny(position=None))
    rng = np.random.default_rng(1)
    weights = {
        level: ops.convert_to_tensor(rng.random(y.shape[1:]), dtype="float32") for level, y in model.output.items()
    }

    def loss(outputs):
        return sum(ops.mean(ops.square(outputs[level]) * weights[level]) for level in LEVELS)

    _, gradients = gradient_function(model, loss, training=True)(images(2, 130, 150, 3))
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        assert gradient is not None, weight.path
        assert np.abs(gradient).max() > 0, weight.path


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only TensorFlow has sizes unknown while tracing")
def test_sizes_unknown_while_tracing_give_the_same():
    import tensorflow as tf

    model, x = randomize(tiny(plain((None, None, 3)))), images(1, 150, 170, 3)
    traced = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, 3), "float32")])
    assert_close({level: y.numpy() for level, y in traced(x).items()}, predict(model, x), 1e-6)


def test_the_pyramid_follows_the_backbones_layout_and_precision():
    options = dict(image_shape=(3, 128, 160), data_format="channels_first", dtype="mixed_float16")
    model = tiny(keras_dualstream.DSNetBackbone(**options, **TINY_DSNET))
    assert [model.output[level].shape[1:] for level in ("P3", "P7")] == [(8, 16, 20), (8, 1, 1)]
    assert model.image_shape == (3, 128, 160)
    assert model.dtype_policy.name == model.get_layer("fpn_P3_block").dtype_policy.name == "mixed_float16"
    assert tiny(model.backbone, dtype="float32").get_layer("fpn_P3_block").dtype_policy.name == "float32"
    restored = DSFPN.from_config(model.get_config())
    assert restored.get_config() == model.get_config()
    assert restored.output["P3"].dtype == "float16"


def test_options_with_weights_change_them():
    options = [{}, dict(mlp_ratio=2.0), dict(channels=12), dict(position="lateral"), dict(position=None)]
    assert len({tiny(**option).count_params() for option in options}) == len(options)


def test_options_without_weights_reach_every_block():
    model = tiny(drop_path_rate=0.2, attention_dropout_rate=0.3, name="pyramid")
    assert model.name == "pyramid"
    for level in LEVELS:
        block = model.get_layer(f"fpn_{level}_block")
        assert (block.drop_path_rate, block.attention_dropout_rate) == (0.2, 0.3)
    assert DSFPN.from_config(model.get_config()).get_config() == model.get_config()


def residual_network():
    """KerasHub's, the pyramid's most usual backbone."""
    keras_hub = pytest.importorskip("keras_hub")
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 8, 12, 16],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=(128, 160, 3),
    )


def test_a_pyramid_on_kerashubs_backbone_trains_and_comes_back(tmp_path):
    model = tiny(residual_network(), None)
    maps = dict(P3=(16, 20), P4=(8, 10), P5=(4, 5), P6=(2, 3), P7=(1, 2))
    assert {level: x.shape[1:3] for level, x in model.output.items()} == maps
    x, y = images(2, 128, 160, 3), {level: images(2, *size, 8) for level, size in maps.items()}
    before = values(model)
    model.compile(keras.optimizers.SGD(0.001), dict.fromkeys(LEVELS, "mse"), run_eagerly=RUN_EAGERLY)
    losses = model.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert losses[0] > losses[1] > losses[2]
    assert all((value != before[path]).any() for path, value in values(model).items())
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert type(restored.backbone) is type(model.backbone)
    assert_close(predict(restored, x), predict(model, x), 1e-6)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="the backend whose SavedModel has free image sizes")
def test_a_saved_model_has_the_pyramid_of_images_of_any_size(tmp_path):
    import tensorflow as tf

    model = randomize(tiny(plain((None, None, 3))))
    model.export(tmp_path / "pyramid", "tf_saved_model", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "pyramid"))
    for shape in ((1, 150, 170, 3), (2, 128, 128, 3)):
        x = images(*shape)
        assert_close({level: y.numpy() for level, y in loaded.serve(x).items()}, predict(model, x), 1e-6)


def values(model):
    return {weight.path: to_numpy(weight) for weight in model.weights}


def test_an_archive_gives_back_the_model_and_what_is_frozen(tmp_path):
    model, x = randomize(tiny()), images(1, 130, 150, 3)
    model.backbone.trainable = False
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert type(restored) is DSFPN
    # As JSON, which has no tuples.
    assert json.dumps(restored.get_config()) == json.dumps(model.get_config())
    assert [weight.path for weight in restored.trainable_weights] == [weight.path for weight in model.trainable_weights]
    assert all(weight.path.startswith("fpn_") for weight in restored.trainable_weights)
    assert_close(predict(restored, x), predict(model, x), 1e-6)


def test_keras_clones_a_model_on_a_pyramid():
    model = tiny(position=None)
    photos = keras.Input(model.image_shape)
    detector = keras.Model(photos, model(photos)["P3"])
    for original in (model, detector):
        clone = keras.models.clone_model(original)
        assert [weight.shape for weight in clone.weights] == [weight.shape for weight in original.weights]


def test_a_weights_file_serves_the_pyramid_and_its_backbone(tmp_path):
    path = str(tmp_path / "a.weights.h5")
    options = dict(image_shape=(128, 128, 3), **TINY_DSNET)
    model = randomize(tiny(keras_dualstream.DSNetBackbone(**options), "last"))
    model.save_weights(path)
    expected = values(model)
    other = tiny(keras_dualstream.DSNetBackbone(**options), "last")
    other.load_weights(path)
    backbone = keras_dualstream.DSNetBackbone(**options)
    backbone.load_weights(path)
    assert values(other).keys() == expected.keys()
    for found in (values(other), values(backbone)):
        assert all((value == expected[path]).all() for path, value in found.items())


MISTAKES = {
    "position": (lambda: tiny(position="first"), r"`position` must be one of \(None, .* Received: position='first'"),
    "dropout": (
        lambda: tiny(position=None, attention_dropout_rate=1),
        r"`attention_dropout_rate` must be in \[0, 1\). Received",
    ),
    "channels": (lambda: tiny(channels=1), "`channels` must be an int of at least 2. Received: channels=1"),
    "no model": (lambda: tiny("resnet"), "`pyramid_outputs` 'P3', 'P4' and 'P5'.* Received: str with no dict"),
    "no maps": (lambda: tiny(keras.Sequential([keras.Input((4,))])), "Received: Sequential with no dict"),
    "empty": (lambda: tiny({}), "must be a model or a dict of KerasTensors. Received: {}"),
    "levels": (lambda: tiny(maps_of_size((8, 8), (4, 4))), r"Received: Functional with \['P3', 'P4'\]"),
    "axes": (lambda: tiny(dict.fromkeys(("P3", "P4", "P5"), keras.Input((8, 8)))), "of four axes. Received: P3="),
    "unknown channels": (
        lambda: tiny(maps_of_size((8, 8), (4, 4), (4, 4), channels=None)),
        "known number of channels, at least 2, .* Received: P3 of shape",
    ),
    "the other layout": (
        lambda: DSFPN(keras_dualstream.DSNetBackbone(**TINY_DSNET), data_format="channels_first"),
        "`data_format` must be the backbone's, 'channels_last'. Received: data_format='channels_first'",
    ),
    "layout": (lambda: tiny(data_format="NHWC"), "`data_format` must be .* Received: data_format='NHWC'"),
    "size": (lambda: tiny(plain((96, 256, 3))), "P5 must be at least 4x4 .* Received: P5 of 3x8"),
    "free size": (
        lambda: tiny(plain((None, None, 3)))(keras.Input((64, 256, 3))),
        "must be at least 2x2 to be cut into patches of 2x2.* Received: 1x4",
    ),
    "rate": (lambda: tiny(drop_path_rate=1), r"`drop_path_rate` must be in \[0, 1\). Received: drop_path_rate=1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    make, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("position", [None, "last", "lateral", "lateral_rev"])
def test_small_images_are_no_mistake_where_nothing_is_cut(position):
    model = tiny(plain((32, 40, 3)), position)
    assert [model.output[level].shape[1:3] for level in LEVELS] == [(4, 5), (2, 2), (1, 1), (1, 1), (1, 1)]
