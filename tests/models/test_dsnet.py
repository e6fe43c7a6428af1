"""DS-Net as a model: sizes, options, training, saving and the checkpoint's names."""

import keras
import numpy as np
import pytest
from helpers import TINY_DSNET
from helpers import compiled
from helpers import gradient_function
from helpers import images
from helpers import one_backend
from helpers import parameter_counts
from helpers import randomize
from helpers import relative_error
from helpers import tiny_dsnet
from helpers import to_numpy
from keras import ops

import keras_dualstream
from keras_dualstream.conversion import load_checkpoint
from keras_dualstream.conversion import to_torch_state_dict
from keras_dualstream.models.dsnet import VARIANTS


def values(model):
    return {weight.path: to_numpy(weight) for weight in model.weights}


def logits_of(model, x):
    return model.predict(x, verbose=0)


def pixels(*shape):
    return 255 * np.random.default_rng(0).random(shape).astype("float32")


MILLIONS = {"DSNetT": (10.534, 9.096), "DSNetS": (23.005, 19.609), "DSNetB": (49.344, 41.814)}


@one_backend
@pytest.mark.parametrize("variant", MILLIONS)
def test_variants_have_their_parameters_with_and_without_alignment(variant):
    trainable = [parameter_counts(variant, **options)[1] for options in ({}, dict(inter_scale_alignment=False))]
    assert tuple(round(count / 1e6, 3) for count in trainable) == MILLIONS[variant]


@one_backend
@pytest.mark.parametrize(("global_ratio", "expected"), [(0, 8.6), (0.25, 8.7), (0.5, 9.1), (0.75, 9.8), (1, 10.7)])
def test_every_share_of_global_channels_has_the_parameters_of_table_2(global_ratio, expected):
    _, trainable = parameter_counts("DSNetT", inter_scale_alignment=False, global_ratio=global_ratio)
    assert round(trainable / 1e6, 1) == expected


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (63, 95), (64, 96)])
def test_any_size_from_32_gives_the_pyramid(size):
    backbone = keras_dualstream.DSNetT(include_top=False, input_shape=(*size, 3), **TINY_DSNET)
    shapes = {level: x.shape[1:] for level, x in backbone.pyramid_outputs.items()}
    expected = {}
    for level, channels in zip(range(2, 6), TINY_DSNET["embed_dims"], strict=True):
        expected[f"P{level}"] = (*(side // 2**level for side in size), channels)
    assert shapes == expected
    if size == (33, 47):
        assert compiled(backbone)(images(1, *size, 3)).shape == (1, *expected["P5"])


def test_unknown_sizes_and_channels_first_images_give_the_same():
    x = pixels(2, 90, 71, 3)
    fixed = randomize(tiny_dsnet((90, 71, 3), classifier_activation=None))
    expected = logits_of(fixed, x)
    free = tiny_dsnet((None, None, 3), classifier_activation=None)
    first = tiny_dsnet((3, 90, 71), data_format="channels_first", classifier_activation=None)
    for model in (free, first):
        model.set_weights(fixed.get_weights())
    if keras.config.backend() == "tensorflow":
        # After a second size TensorFlow traces height and width as unknown.
        logits_of(free, x), logits_of(free, x[:, :44])
    assert relative_error(logits_of(free, x), expected) < 2e-6
    assert relative_error(logits_of(first, x.transpose(0, 3, 1, 2)), expected) < 1e-6


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only TensorFlow has sizes unknown while tracing")
def test_float64_is_exact_where_the_size_is_unknown_while_tracing():
    import tensorflow as tf

    fixed = randomize(tiny_dsnet((90, 71, 3), classifier_activation=None, dtype="float64"))
    free = tiny_dsnet((None, None, 3), classifier_activation=None, dtype="float64")
    free.set_weights(fixed.get_weights())
    x = pixels(2, 90, 71, 3).astype("float64")
    traced = tf.function(free, input_signature=[tf.TensorSpec((None, None, None, 3), "float64")])
    assert relative_error(traced(x), fixed(x)) < 1e-12


OPTIONS = {
    "inter_scale_alignment": False,
    "alignment_dims": (8, 8, 9, 16),
    "local_convolution": False,
    "global_attention": False,
    "local_to_global": False,
    "global_to_local": False,
    "global_ratio": 0.25,
    "mlp_ratio": 3.0,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_the_weights_and_survives_the_config(option):
    model = tiny_dsnet(**{option: OPTIONS[option]})
    assert model.count_params() != tiny_dsnet().count_params()
    restored = type(model).from_config(model.get_config())
    assert restored.get_config() == model.get_config()
    assert [weight.shape for weight in restored.weights] == [weight.shape for weight in model.weights]


def test_options_without_weights_reach_their_blocks():
    options = dict(num_heads=(2, 4, 6, 8), global_strides=(4, 3, 2, 1), attention_dropout_rate=0.3, drop_path_rate=0.6)
    model = tiny_dsnet(**options)
    blocks = [model.get_layer(f"stage{stage}_block1") for stage in (1, 2, 3, 4)]
    for part in ("propagation", "alignment"):
        assert [getattr(block, part).num_heads for block in blocks] == [2, 4, 6, 8]
        assert {getattr(block, part).attention_dropout_rate for block in blocks} == {0.3}
    assert [block.propagation.global_stride for block in blocks] == [4, 3, 2, 1]
    np.testing.assert_allclose([block.drop_path_rate for block in blocks], [0, 0.2, 0.4, 0.6])
    assert type(model).from_config(model.get_config()).get_config() == model.get_config()


def test_variants_train_with_the_published_rates():
    assert {options["drop_path_rate"] for options in VARIANTS.values()} == {0.1}
    block = keras_dualstream.DSNetT(**TINY_DSNET).get_layer("stage4_block1")
    assert (round(block.drop_path_rate, 9), block.attention_dropout_rate) == (0.1, 0.1)


def test_bfloat16_predicts_like_float32():
    """On an odd size; test_every_layer.py has every layer in both half precisions."""
    model, x = randomize(tiny_dsnet((101, 73, 3), classifier_activation=None)), pixels(3, 101, 73, 3)
    half = tiny_dsnet((101, 73, 3), classifier_activation=None, dtype="mixed_bfloat16")
    half.set_weights(model.get_weights())
    assert relative_error(logits_of(half, x), logits_of(model, x)) < 0.02


def test_gradients_reach_every_weight_and_train_in_float16():
    """In float32 and float64, test_parity.py has them."""
    model = randomize(tiny_dsnet((101, 73, 3), classifier_activation=None, dtype="mixed_float16"))
    target = ops.convert_to_tensor(np.random.default_rng(3).standard_normal((3, 5)), dtype="float32")
    scale, x, losses = 128.0, pixels(3, 101, 73, 3), []
    step = gradient_function(model, lambda logits: scale * ops.mean(ops.square(logits - target)), training=True)
    for _ in range(3):
        loss, gradients = step(x)
        losses.append(loss)
        for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
            assert gradient is not None, weight.path
            assert np.isfinite(gradient).all(), weight.path
            assert np.abs(gradient).max() > 0, weight.path
            weight.assign(to_numpy(weight) - 0.002 / scale * gradient)
    assert losses[2] < losses[1] < losses[0]


def test_an_archive_gives_back_the_model(tmp_path):
    model = randomize(tiny_dsnet(attention_dropout_rate=0.1))
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert restored.get_config() == model.get_config()
    found = values(restored)
    assert all((found[name] == value).all() for name, value in values(model).items())


def test_one_weights_file_serves_every_head_and_every_rate(tmp_path):
    path = str(tmp_path / "a.weights.h5")
    model = randomize(tiny_dsnet(attention_dropout_rate=0.1, drop_path_rate=0.1))
    model.save_weights(path)
    expected = values(model.backbone)
    headless = keras_dualstream.DSNetT(include_top=False, weights=path, attention_dropout_rate=0.0, **TINY_DSNET)
    with pytest.warns(UserWarning, match="these layers are new: classifier"):
        other = tiny_dsnet(classes=7, weights=path)
    for found in (values(headless), values(other.backbone)):
        assert found.keys() == expected.keys()
        assert all((found[name] == expected[name]).all() for name in expected)
    np.testing.assert_array_equal(to_numpy(other.get_layer("norm").gamma), to_numpy(model.get_layer("norm").gamma))
    with pytest.raises(ValueError, match="is of a larger model.* has more weights of: stage1_block1, "):
        tiny_dsnet(weights=path, inter_scale_alignment=False)


def test_a_preset_gives_back_the_backbone(tmp_path):
    backbone = randomize(keras_dualstream.DSNetBackbone(**TINY_DSNET, image_shape=(32, 32, 3)))
    backbone.save_to_preset(tmp_path / "preset")
    restored = keras_dualstream.DSNetBackbone.from_preset(tmp_path / "preset")
    assert restored.get_config() == backbone.get_config()
    found = values(restored)
    assert all((found[name] == value).all() for name, value in values(backbone).items())


CONVERTED = {
    "published": {},
    "without alignment": dict(inter_scale_alignment=False),
    "no local convolution": dict(local_convolution=False),
    "no global attention": dict(global_attention=False),
    "quarter": dict(global_ratio=0.25),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_a_checkpoint_comes_back_bit_for_bit(name):
    source = to_torch_state_dict(randomize(tiny_dsnet(**CONVERTED[name]), seed=1))
    model = tiny_dsnet(**CONVERTED[name])
    load_checkpoint(model, source)
    found = to_torch_state_dict(model)
    assert found.keys() == source.keys()
    for tensor, array in source.items():
        assert (found[tensor] == array).all()
    headless = keras_dualstream.DSNetT(include_top=False, **TINY_DSNET, **CONVERTED[name])
    load_checkpoint(headless, source)
    assert {tensor.partition(".")[0] for tensor in set(source) - set(to_torch_state_dict(headless))} == {"norm", "head"}


def test_a_checkpoint_with_alignment_says_how_to_build_its_model():
    source = to_torch_state_dict(tiny_dsnet())
    model = randomize(tiny_dsnet(inter_scale_alignment=False))
    before = values(model)
    with pytest.raises(ValueError, match="aligns its streams: build the model with `inter_scale_alignment=True`"):
        load_checkpoint(model, source)
    assert all((value == before[name]).all() for name, value in values(model).items())


def test_one_way_alignment_has_no_checkpoint():
    with pytest.raises(ValueError, match="align both ways or not at all. Received: local_to_global=False"):
        to_torch_state_dict(tiny_dsnet(local_to_global=False))


MISTAKES = {
    "stages": (
        dict(global_strides=(2, 2)),
        r"`global_strides` must have one value for each of the 4 stages. Received: \(2, 2\)",
    ),
    "dims": (dict(alignment_dims=8), "`alignment_dims` must have one value for each of the 4 stages. Received: 8"),
    "ratio": (dict(global_ratio=0), "`global_ratio` must be between 0 and 1, or `inter_scale_alignment` be False"),
    "dropout": (dict(attention_dropout_rate=1), r"`attention_dropout_rate` must be in \[0, 1\). Received: .*=1"),
    "rate": (dict(drop_path_rate=1), r"`drop_path_rate` must be in \[0, 1\). Received: drop_path_rate=1"),
    "heads": (dict(num_heads=(3, 2, 3, 4)), "`num_heads` must divide the channels of the input. Received: num_heads=3"),
    "size": (dict(input_shape=(31, 64, 3)), r"at least 32 pixels, or None for any. Received: \(31, 64, 3\)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    options, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        tiny_dsnet(**options)


def test_an_image_too_small_for_a_free_size_is_named():
    with pytest.raises(ValueError, match="map must be at least .*Received: 1x4"):
        tiny_dsnet((None, None, 3))(keras.Input((31, 64, 3)))
