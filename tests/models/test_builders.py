"""The builders behave as those of `keras.applications` do."""

import inspect

import keras
import numpy as np
import pytest
from helpers import TINY
from helpers import compiled
from helpers import images
from helpers import one_backend
from helpers import predict
from helpers import randomize
from helpers import relative_error
from helpers import tiny_model
from helpers import to_numpy

import keras_dualstream
from keras_dualstream.models.dualvit import VARIANTS


@pytest.mark.parametrize("variant", VARIANTS)
def test_builders_have_the_signature_of_keras_applications(variant):
    builder = getattr(keras_dualstream, variant)
    assert list(inspect.signature(builder).parameters) == [
        "include_top",
        "weights",
        "input_tensor",
        "input_shape",
        "pooling",
        "classes",
        "classifier_activation",
        "include_preprocessing",
        "name",
        "backbone_options",
    ]
    assert builder.__name__ == variant
    assert inspect.signature(builder).parameters["name"].default == variant
    assert variant in builder.__doc__


def test_default_shapes_are_those_of_keras_applications():
    assert keras_dualstream.DualViTS(**TINY).input_shape == (None, 224, 224, 3)
    assert keras_dualstream.DualViTS(include_top=False, **TINY).input_shape == (None, None, None, 3)


def test_top_gives_probabilities_and_no_activation_gives_logits():
    model = randomize(tiny_model())
    logits = randomize(tiny_model(classifier_activation=None))
    x = 100 * images(2, 32, 40, 3)
    probabilities = predict(model, x)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-5)
    expected = to_numpy(keras.ops.softmax(predict(logits, x)))
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pooling", [None, "avg", "max"])
def test_without_top_the_output_is_the_last_map_or_its_pool(pooling):
    model = keras_dualstream.DualViTS(include_top=False, pooling=pooling, input_shape=(64, 96, 3), **TINY)
    assert model.backbone is model
    found = predict(model, images(2, 64, 96, 3))
    features = predict(keras.Model(model.input, model.pyramid_outputs["P5"]), images(2, 64, 96, 3))
    expected = {None: features, "avg": features.mean(axis=(1, 2)), "max": features.max(axis=(1, 2))}[pooling]
    assert relative_error(found, expected) < 1e-6
    assert model.output_shape == (None, *expected.shape[1:])


def test_the_backbone_shares_the_layers():
    model = tiny_model()
    assert model.backbone.name == "DualViTS_backbone"
    for layer in model.backbone.layers:
        if layer.weights:
            assert model.get_layer(layer.name) is layer
    names = [weight.path for weight in model.weights]
    assert len(names) == len(set(names))
    assert {weight.path for weight in model.backbone.weights} < set(names)


def test_layers_are_found_by_readable_names():
    names = [layer.name for layer in tiny_model().layers]
    for name in ("stem_conv1", "stage1_semantic_tokens", "stage3_block2", "stage4_norm", "class_block", "classifier"):
        assert name in names


@pytest.mark.parametrize("size", [(25, 25), (33, 47), (64, 96), (97, 65)])
def test_the_pyramid_halves_from_level_to_level(size):
    backbone = keras_dualstream.DualViTBackbone(image_shape=(*size, 3), **TINY)
    maps = predict(keras.Model(backbone.input, backbone.pyramid_outputs), images(1, *size, 3))
    assert list(maps) == ["P2", "P3", "P4", "P5"]
    for level, channels in zip(range(2, 6), TINY["embed_dims"], strict=True):
        expected = (1, *(-(-side // 2**level) for side in size), channels)
        assert maps[f"P{level}"].shape == expected
        assert backbone.pyramid_outputs[f"P{level}"].shape == (None, *expected[1:])


def test_one_model_takes_images_of_any_size():
    """The second size makes TensorFlow trace with unknown sizes."""
    free = randomize(tiny_model((None, None, 3)))
    for size in [(32, 40), (25, 39), (67, 45), (32, 40)]:
        fixed = randomize(tiny_model((*size, 3)))
        x = 100 * images(1, *size, 3)
        assert relative_error(free.predict(x, verbose=0), predict(fixed, x)) < 2e-6


@pytest.mark.parametrize("input_shape", [(32, 40, 3), (None, None, 3)])
def test_channels_first_images_give_the_same(input_shape):
    last = randomize(tiny_model(input_shape))
    first = randomize(tiny_model((input_shape[2], *input_shape[:2]), data_format="channels_first"))
    x = 100 * images(2, 32, 40, 3)
    expected, found = (
        predict(keras.Model(model.input, {"top": model.output, **model.backbone.pyramid_outputs}), pixels)
        for model, pixels in ((last, x), (first, x.transpose(0, 3, 1, 2)))
    )
    assert relative_error(found.pop("top"), expected.pop("top")) < 1e-6
    for level in expected:
        assert relative_error(found[level].transpose(0, 2, 3, 1), expected[level]) < 1e-6


def test_kerass_own_image_data_format_is_the_default():
    expected = predict(randomize(tiny_model()), 100 * images(1, 32, 40, 3))
    keras.config.set_image_data_format("channels_first")
    try:
        model = randomize(tiny_model((3, 32, 40)))
        found = predict(model, 100 * images(1, 32, 40, 3).transpose(0, 3, 1, 2))
        assert keras_dualstream.DualViTS(**TINY).input_shape == (None, 3, 224, 224)
        pooled = keras_dualstream.DualViTS(include_top=False, pooling="avg", **TINY)
        assert pooled.output_shape == (None, 32)
    finally:
        keras.config.set_image_data_format("channels_last")
    assert relative_error(found, expected) < 1e-6


def test_preprocessing_is_the_papers():
    with_it, without = randomize(tiny_model()), randomize(tiny_model(include_preprocessing=False))
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3)).astype("uint8")
    normalized = (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert relative_error(predict(with_it, x), predict(without, normalized)) < 1e-5


@pytest.mark.parametrize(
    ("channels", "mean", "std"),
    [
        (1, [(0.485 + 0.456 + 0.406) / 3], [(0.229 + 0.224 + 0.225) / 3]),
        (4, [0.485, 0.456, 0.406, 0.485], [0.229, 0.224, 0.225, 0.229]),
    ],
)
def test_other_channels_are_normalised_by_the_same_statistics(channels, mean, std):
    with_it = randomize(tiny_model((32, 32, channels)))
    without = randomize(tiny_model((32, 32, channels), include_preprocessing=False))
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, channels)).astype("float32")
    normalized = (x / 255 - mean) / std
    assert relative_error(predict(with_it, x), predict(without, normalized)) < 1e-5


def test_input_tensor_continues_a_graph_and_travels_with_it(tmp_path):
    image = keras.Input((64, 80, 1), name="gray")
    rgb = keras.layers.Conv2D(3, 3, strides=2, padding="same", name="to_rgb", data_format="channels_last")(image)
    model = randomize(tiny_model(None, input_tensor=rgb))
    assert model.input_shape == (None, 64, 80, 1)
    x = images(2, 64, 80, 1)
    expected = predict(model, x)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(restored, x), expected)
    without = keras_dualstream.DualViTS(include_top=False, input_tensor=keras.Input((32, 40, 3), name="mine"), **TINY)
    assert without.input.name == "mine"


def test_token_label_head_adds_half_of_the_strongest_pixel():
    model = randomize(tiny_model((64, 96, 3), classifier_activation=None))
    outputs = {"sum": model.output, **model.training_outputs}
    found = predict(keras.Model(model.input, outputs), 100 * images(2, 64, 96, 3))
    assert found["token_logits"].shape == (2, 2, 3, 5)
    expected = found["logits"] + 0.5 * found["token_logits"].max(axis=(1, 2))
    assert relative_error(found["sum"], expected) < 1e-6
    plain = tiny_model(token_label_head=False)
    assert list(plain.training_outputs) == ["logits"]
    assert model.count_params() - plain.count_params() == 32 * 5 + 5


def test_every_backbone_option_changes_the_backbone():
    base = keras_dualstream.DualViTBackbone(**TINY)
    counts = {
        option: keras_dualstream.DualViTBackbone(**{**TINY, option: value}).count_params() - base.count_params()
        for option, value in {
            "stem_dim": 4,
            "embed_dims": (8, 16, 24, 48),
            "depths": (1, 1, 1, 1),
            "mlp_ratios": (3, 2, 2, 2),
            "semantic_steps": ("cross_attention", "feed_forward"),
        }.items()
    }
    assert all(counts.values())
    gamma = (
        keras_dualstream.DualViTBackbone(**{**TINY, "layer_scale_init_value": 0.3}).get_layer("stage3_block1").scale1
    )
    np.testing.assert_allclose(to_numpy(gamma.gamma), 0.3, rtol=1e-6)
    assert (
        keras_dualstream.DualViTBackbone(**{**TINY, "num_heads": (2, 4, 6, 8)}).get_layer("stage3_block1").num_heads
        == 6
    )
    assert keras_dualstream.DualViTBackbone(**TINY, remat=True).get_layer("stage3_block1").remat


def test_drop_path_rises_over_the_blocks():
    backbone = keras_dualstream.DualViTBackbone(**{**TINY, "drop_path_rate": 0.5})
    blocks = [layer for layer in backbone.layers if "block" in layer.name]
    rates = [block.drop_path_rate for block in blocks]
    np.testing.assert_allclose(sorted(rates), np.linspace(0, 0.5, 5))
    assert dict(zip((block.name for block in blocks), rates, strict=True))["stage4_block1"] == 0.5


@pytest.mark.parametrize(("variant", "rate"), [("DualViTS", 0.15), ("DualViTB", 0.15), ("DualViTL", 0.3)])
def test_variants_train_with_the_published_stochastic_depth(variant, rate):
    assert VARIANTS[variant]["drop_path_rate"] == rate


@one_backend
def test_semantic_pathways_of_the_paper_have_its_parameter_counts():
    """Fig. 3 of the paper, Dual-ViT-S: without self-attention, without feed-forward, swapped, whole; in millions."""
    steps = {
        ("cross_attention", "feed_forward"): 24.8,
        ("self_attention", "cross_attention"): 24.4,
        ("cross_attention", "self_attention", "feed_forward"): 25.1,
        ("self_attention", "cross_attention", "feed_forward"): 25.1,
    }
    for semantic_steps, millions in steps.items():
        model = keras_dualstream.DualViTS(semantic_steps=semantic_steps)
        assert round(model.count_params() / 1e6, 1) == millions


ERRORS = {
    "weights name": (dict(weights="imagenet21k"), "Weights must be None, 'imagenet' .* Received: 'imagenet21k'"),
    "weights type": (dict(weights=3), "Weights must be None, 'imagenet' .* Received: 3"),
    "weights file": (dict(weights="missing.weights.h5"), "Weights must be None, .*an existing `.weights.h5` file"),
    "classes zero": (dict(classes=0), "number of classes must be a positive int. Received: 0"),
    "classes type": (dict(classes="ten"), "number of classes must be a positive int. Received: 'ten'"),
    "pooling": (dict(pooling="mean"), "`pooling` must be None, 'avg' or 'max'. Received: pooling='mean'"),
    "too small": (dict(input_shape=(24, 32, 3)), r"at least 25 pixels, or None for any. Received: \(24, 32, 3\)"),
    "rank": (dict(input_shape=(32, 32)), r"must be \(height, width, channels\). Received: \(32, 32\)"),
    "no channels": (dict(input_shape=(32, 32, None)), "known number of channels. Received"),
    "first": (
        dict(input_shape=(3, 24, 32), data_format="channels_first"),
        r"must be \(channels, height, width\) .*at least 25 pixels",
    ),
    "data format": (dict(data_format="last"), "`data_format` must be 'channels_last' or 'channels_first'. Received"),
    "input tensor": (dict(input_tensor=np.ones((1, 32, 32, 3))), "`input_tensor` must be a KerasTensor"),
    "heads": (dict(num_heads=(3, 2, 3, 4)), "`num_heads` must divide the channels.*num_heads=3, channels=8"),
    "conflict": (
        dict(input_tensor=keras.Input((64, 64, 3))),
        "`input_shape` must be the shape of `input_tensor`, or None",
    ),
    "ratios": (dict(mlp_ratios=(2, 2, 1, 2)), "`mlp_ratios` must be positive, the third above 1. Received"),
    "stages type": (dict(depths=2), "`depths` must have one value for each of the 4 stages. Received: 2"),
    "stages": (dict(depths=(1, 1, 1)), r"`depths` must have one value for each of the 4 stages. Received: \(1, 1, 1\)"),
    "drop path": (dict(drop_path_rate=1.5), r"`drop_path_rate` must be in \[0, 1\). Received: drop_path_rate=1.5"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_arguments_say_what_is_allowed(case):
    options, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        tiny_model(**options)


def test_pooling_is_checked_without_top_too():
    with pytest.raises(ValueError, match="`pooling` must be None, 'avg' or 'max'. Received: pooling='mean'"):
        keras_dualstream.DualViTS(include_top=False, pooling="mean", **TINY)
    with pytest.raises(ValueError, match="`pooling` must be None, 'avg' or 'max'. Received: pooling='mean'"):
        keras_dualstream.DualViTBackbone(pooling="mean", **TINY)


def test_numpy_integers_are_numbers_of_classes():
    assert tiny_model(classes=np.int64(3)).output_shape == (None, 3)


def test_a_classifier_wants_a_backbone_of_this_package():
    with pytest.raises(ValueError, match="`backbone` must be a backbone of keras_dualstream. Received"):
        keras_dualstream.ImageClassifier(keras.Sequential())


def test_an_image_too_small_for_a_free_size_is_named():
    model = tiny_model((None, None, 3))
    with pytest.raises(ValueError, match="at least 25x25"):
        model(images(1, 20, 40, 3))


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_preprocessing_and_pooling_keep_float64(pooling, float64):
    options = dict(TINY, image_shape=(64, 96, 3), dtype=float64)
    with_both = randomize(keras_dualstream.DualViTBackbone(**options, pooling=pooling))
    without = randomize(keras_dualstream.DualViTBackbone(**options, include_preprocessing=False))
    x = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3)).astype("float64")
    # Called, not predicted: `predict` rounds images to float32.
    normalized = (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    features = to_numpy(compiled(without)(keras.ops.convert_to_tensor(normalized, dtype=float64)))
    expected = features.mean(axis=(1, 2)) if pooling == "avg" else features.max(axis=(1, 2))
    assert relative_error(compiled(with_both)(keras.ops.convert_to_tensor(x, dtype=float64)), expected) < 1e-12


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="window_size"):
        tiny_model(window_size=7)
