"""TransXNet as a model: sizes, options, training, saving and the checkpoint's names."""

import keras
import numpy as np
import pytest
from helpers import TINY_TRANSXNET
from helpers import compiled
from helpers import gradient_function
from helpers import images
from helpers import randomize
from helpers import relative_error
from helpers import tiny_transxnet
from helpers import to_numpy
from keras import ops

import keras_dualstream
from keras_dualstream.conversion import load_checkpoint
from keras_dualstream.conversion import to_torch_state_dict


def values(model):
    return {weight.path: to_numpy(weight) for weight in model.weights if "seed" not in weight.path}


def logits_of(model, x):
    return model.predict(x, verbose=0)


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (48, 48), (64, 40)])
def test_any_size_gives_the_pyramid(size):
    backbone = keras_dualstream.TransXNetT(include_top=False, input_shape=(*size, 3), **TINY_TRANSXNET)
    shapes = {level: x.shape[1:] for level, x in backbone.pyramid_outputs.items()}
    expected = {}
    for level, channels in zip(range(2, 6), TINY_TRANSXNET["embed_dims"], strict=True):
        expected[f"P{level}"] = (*(-(-side // 2**level) for side in size), channels)
    assert shapes == expected
    assert compiled(backbone)(images(1, *size, 3)).shape == (1, *expected["P5"])


def test_a_model_of_unknown_size_equals_one_of_known_size():
    fixed = randomize(tiny_transxnet((56, 40, 3), classifier_activation=None))
    free = tiny_transxnet((None, None, 3), classifier_activation=None)
    free.set_weights(fixed.get_weights())
    x = 255 * np.random.default_rng(0).random((2, 56, 40, 3)).astype("float32")
    # After a second size TensorFlow traces height and width as unknown.
    for other in (x, x[:, :44], x):
        found = logits_of(free, other)
    assert relative_error(found, logits_of(fixed, x)) < 2e-6


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only TensorFlow has sizes unknown while tracing")
def test_float64_is_exact_where_the_size_is_unknown_while_tracing():
    import tensorflow as tf

    fixed = randomize(tiny_transxnet((56, 40, 3), classifier_activation=None, dtype="float64"))
    free = tiny_transxnet((None, None, 3), classifier_activation=None, dtype="float64")
    free.set_weights(fixed.get_weights())
    x = 255 * np.random.default_rng(0).random((2, 56, 40, 3))
    traced = tf.function(free, input_signature=[tf.TensorSpec((None, None, None, 3), "float64")])
    assert relative_error(traced(x), fixed(x)) < 1e-12


def test_channels_first_images_give_the_same():
    last = randomize(tiny_transxnet((32, 40, 3)))
    first = tiny_transxnet((3, 32, 40), data_format="channels_first")
    first.set_weights(last.get_weights())
    x = 255 * np.random.default_rng(0).random((2, 32, 40, 3)).astype("float32")
    assert relative_error(logits_of(first, x.transpose(0, 3, 1, 2)), logits_of(last, x)) < 1e-6


OPTIONS = {
    "local_operator": ("depthwise_conv", "id_conv"),
    "attention_ratio": (0.25, 0.5),
    "overlapping_reduction": (False, True),
    "token_enhancer": (False, True),
    "position_encoding": (False, True),
    "position_bias": (False, True),
    "pretraining_size": ((64, 32), 48),
    "scales": ((1, 3), (1, 3, 5, 7)),
    "kernel_size": (5, 3),
    "sr_ratios": ((4, 2, 2, 1), (8, 4, 2, 1)),
    "num_groups": ((2, 2, 3, 4), (2, 2, 2, 2)),
    "mlp_ratios": ((3, 2, 2, 2), (2, 2, 2, 2)),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_the_weights_and_survives_the_config(option):
    value, default = OPTIONS[option]
    model = tiny_transxnet(**{option: value})
    assert model.count_params() != tiny_transxnet(**{option: default}).count_params()
    restored = type(model).from_config(model.get_config())
    assert restored.get_config() == model.get_config()
    assert [weight.shape for weight in restored.weights] == [weight.shape for weight in model.weights]


def test_gradients_reach_every_trainable_weight():
    model = randomize(tiny_transxnet((61, 87, 3), classifier_activation=None))
    target = ops.convert_to_tensor(np.random.default_rng(3).standard_normal((3, 5)), dtype="float32")
    step = gradient_function(model, lambda logits: ops.mean(ops.square(logits - target)), training=True)
    _, gradients = step(255 * np.random.default_rng(0).random((3, 61, 87, 3)).astype("float32"))
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        assert gradient is not None, weight.path
        assert np.abs(gradient).max() > 0, weight.path


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_trains_and_predicts_like_float32(policy):
    labels = np.arange(20) % 5
    rng = np.random.default_rng(0)
    x = (40 * labels[:, None, None, None] + 20 * rng.random((20, 64, 64, 3))).astype("float32")
    model = tiny_transxnet((64, 64, 3), dtype=policy, layer_scale_init_value=0.1)
    optimizer = keras.optimizers.SGD(0.02)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    losses = model.fit(x, labels, batch_size=10, epochs=10, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    single = tiny_transxnet((64, 64, 3))
    single.set_weights(list(values(model).values()))
    assert relative_error(logits_of(model, x), logits_of(single, x)) < 0.02


def test_an_archive_gives_back_the_model(tmp_path):
    model = randomize(tiny_transxnet())
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    x = 255 * np.random.default_rng(0).random((2, 32, 40, 3)).astype("float32")
    np.testing.assert_array_equal(logits_of(restored, x), logits_of(model, x))


def test_one_weights_file_serves_every_head(tmp_path):
    path = str(tmp_path / "a.weights.h5")
    model = randomize(tiny_transxnet())
    model.save_weights(path)
    expected = values(model.backbone)
    headless = keras_dualstream.TransXNetT(include_top=False, weights=path, **TINY_TRANSXNET)
    with pytest.warns(UserWarning, match="these layers are new: classifier"):
        other = tiny_transxnet(classes=7, weights=path)
    for found in (values(headless), values(other.backbone)):
        assert found.keys() == expected.keys()
        assert all((found[name] == expected[name]).all() for name in expected)
    np.testing.assert_array_equal(to_numpy(other.get_layer("norm").gamma), to_numpy(model.get_layer("norm").gamma))


def test_a_preset_gives_back_the_backbone(tmp_path):
    backbone = randomize(keras_dualstream.TransXNetBackbone(**TINY_TRANSXNET, image_shape=(32, 32, 3)))
    backbone.save_to_preset(tmp_path / "preset")
    restored = keras_dualstream.TransXNetBackbone.from_preset(tmp_path / "preset")
    found = values(restored)
    assert all((found[name] == value).all() for name, value in values(backbone).items())


def test_a_checkpoint_comes_back_bit_for_bit():
    source = to_torch_state_dict(randomize(tiny_transxnet(), seed=1))
    model = tiny_transxnet()
    load_checkpoint(model, source)
    found = to_torch_state_dict(model)
    assert found.keys() == source.keys()
    for name, array in source.items():
        assert (found[name] == array).all()
    headless = keras_dualstream.TransXNetT(include_top=False, **TINY_TRANSXNET)
    load_checkpoint(headless, source)
    assert set(source) - set(to_torch_state_dict(headless)) == {
        f"classifier.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }


def test_without_position_bias_a_checkpoint_and_a_weights_file_go_without_it(tmp_path):
    full = randomize(tiny_transxnet(), seed=1)
    path = str(tmp_path / "a.weights.h5")
    full.save_weights(path)
    expected = {name: value for name, value in values(full).items() if "position_bias" not in name}
    assert len(expected) == len(values(full)) - 4
    converted, loaded = tiny_transxnet(position_bias=False), tiny_transxnet(position_bias=False, weights=path)
    load_checkpoint(converted, to_torch_state_dict(full))
    for found in (values(converted), values(loaded)):
        assert found.keys() == expected.keys()
        assert all((found[name] == expected[name]).all() for name in expected)


def test_an_ablation_has_no_checkpoint():
    model = tiny_transxnet(local_operator="dy_conv")
    with pytest.raises(ValueError, match="Checkpoints have IDConv.* Received: {'local_operator': 'dy_conv'}"):
        to_torch_state_dict(model)


MISTAKES = {
    "imagenet": (dict(weights="imagenet"), "to be converted once. Get it by the links at .*LMMMEng/TransXNet"),
    "stages": (
        dict(num_groups=(2, 2)),
        r"`num_groups` must have one value for each of the 4 stages. Received: \(2, 2\)",
    ),
    "size": (dict(pretraining_size=0), "`pretraining_size` must be a positive int or a pair of them. Received: .*0"),
    "rate": (dict(drop_path_rate=1), r"`drop_path_rate` must be in \[0, 1\). Received: drop_path_rate=1"),
    "ratio": (dict(sr_ratios=(0, 4, 2, 1)), r"`sr_ratios` must be positive. Received: \(0, 4, 2, 1\)"),
    "heads": (dict(num_heads=(3, 2, 3, 4)), "`num_heads` must divide the channels of the input. Received: num_heads=3"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    options, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        tiny_transxnet(**options)
