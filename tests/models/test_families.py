"""What every family does as a model: any size, training, saving and the checkpoint's names."""

import keras
import numpy as np
import pytest
from helpers import TINY_DFVT
from helpers import TINY_TRANSXNET
from helpers import compiled
from helpers import gradient_function
from helpers import images
from helpers import predict
from helpers import randomize
from helpers import relative_error
from helpers import tiny_dfvt
from helpers import tiny_transxnet
from helpers import to_numpy
from keras import ops

import keras_dualstream
from keras_dualstream.conversion import load_checkpoint
from keras_dualstream.conversion import to_torch_state_dict

# Dual-ViT, the first, has its own tests in other files.
FAMILIES = {
    "DFvT": (tiny_dfvt, keras_dualstream.DFvTT, TINY_DFVT, (48, 48, 96, 384)),
    "TransXNet": (tiny_transxnet, keras_dualstream.TransXNetT, TINY_TRANSXNET, (8, 16, 24, 32)),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def tiny(family, *args, **options):
    return FAMILIES[family][0](*args, **options)


def headless(family, **options):
    _, builder, config, _ = FAMILIES[family]
    return builder(include_top=False, **{**config, **options})


def pixels(*shape):
    return 255 * np.random.default_rng(0).random(shape).astype("float32")


def values(model):
    return {weight.path: to_numpy(weight) for weight in model.weights if "seed" not in weight.path}


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (64, 40)])
def test_any_size_gives_the_pyramid(family, size):
    backbone = headless(family, input_shape=(*size, 3))
    shapes = {level: x.shape[1:] for level, x in backbone.pyramid_outputs.items()}
    expected = {}
    for level, channels in zip(range(2, 6), FAMILIES[family][-1], strict=True):
        expected[f"P{level}"] = (*(-(-side // 2**level) for side in size), channels)
    assert shapes == expected
    assert compiled(backbone)(images(1, *size, 3)).shape == (1, *expected["P5"])


def test_a_model_of_unknown_size_equals_one_of_known_size(family):
    fixed = randomize(tiny(family, (56, 40, 3), classifier_activation=None))
    free = tiny(family, (None, None, 3), classifier_activation=None)
    free.set_weights(fixed.get_weights())
    x = pixels(2, 56, 40, 3)
    # After a second size TensorFlow traces height and width as unknown.
    for other in (x, x[:, :44], x):
        found = free.predict(other, verbose=0)
    assert relative_error(found, predict(fixed, x)) < 2e-6


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only TensorFlow has sizes unknown while tracing")
def test_float64_is_exact_where_the_size_is_unknown_while_tracing(family):
    import tensorflow as tf

    fixed = randomize(tiny(family, (56, 40, 3), classifier_activation=None, dtype="float64"))
    free = tiny(family, (None, None, 3), classifier_activation=None, dtype="float64")
    free.set_weights(fixed.get_weights())
    x = 255 * np.random.default_rng(0).random((2, 56, 40, 3))
    traced = tf.function(free, input_signature=[tf.TensorSpec((None, None, None, 3), "float64")])
    assert relative_error(traced(x), fixed(x)) < 1e-12


def test_channels_first_images_give_the_same(family):
    last = randomize(tiny(family))
    first = tiny(family, (3, 32, 40), data_format="channels_first")
    first.set_weights(last.get_weights())
    x = pixels(2, 32, 40, 3)
    assert relative_error(predict(first, x.transpose(0, 3, 1, 2)), predict(last, x)) < 1e-6


def test_gradients_reach_every_trainable_weight(family):
    model = randomize(tiny(family, (61, 87, 3), classifier_activation=None))
    target = ops.convert_to_tensor(np.random.default_rng(3).standard_normal((3, 5)), dtype="float32")
    step = gradient_function(model, lambda logits: ops.mean(ops.square(logits - target)), training=True)
    _, gradients = step(pixels(3, 61, 87, 3))
    missing = [
        weight.path for weight, gradient in zip(model.trainable_weights, gradients, strict=True) if gradient is None
    ]
    assert not missing
    largest = max(np.abs(gradient).max() for gradient in gradients)
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        # More than rounding, but where batch normalisation takes away what a shift before it adds.
        shifts = weight.path.endswith(("bias", "beta"))
        assert np.abs(gradient).max() > (0 if shifts else 1e-6 * largest), weight.path


def test_bfloat16_predicts_like_float32(family):
    single = randomize(tiny(family, (64, 64, 3)))
    half = tiny(family, (64, 64, 3), dtype="mixed_bfloat16")
    half.set_weights(single.get_weights())
    assert relative_error(predict(half, pixels(2, 64, 64, 3)), predict(single, pixels(2, 64, 64, 3))) < 0.02


def test_an_archive_gives_back_the_model(family, tmp_path):
    model = randomize(tiny(family))
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    x = pixels(2, 32, 40, 3)
    np.testing.assert_array_equal(predict(restored, x), predict(model, x))


def test_one_weights_file_serves_every_head(family, tmp_path):
    path = str(tmp_path / "a.weights.h5")
    model = randomize(tiny(family))
    model.save_weights(path)
    expected = values(model.backbone)
    with pytest.warns(UserWarning, match="these layers are new: classifier"):
        other = tiny(family, classes=7, weights=path)
    for found in (values(headless(family, weights=path)), values(other.backbone)):
        assert found.keys() == expected.keys()
        assert all((found[name] == expected[name]).all() for name in expected)
    np.testing.assert_array_equal(to_numpy(other.get_layer("norm").gamma), to_numpy(model.get_layer("norm").gamma))


def test_a_preset_gives_back_the_backbone(family, tmp_path):
    backbone = randomize(headless(family, input_shape=(32, 32, 3)))
    backbone.save_to_preset(tmp_path / "preset")
    restored = type(backbone).from_preset(tmp_path / "preset")
    found = values(restored)
    assert all((found[name] == value).all() for name, value in values(backbone).items())


def test_a_checkpoint_comes_back_bit_for_bit(family):
    source = to_torch_state_dict(randomize(tiny(family), seed=1))
    model = tiny(family)
    load_checkpoint(model, source)
    found = to_torch_state_dict(model)
    assert found.keys() == source.keys()
    for name, array in source.items():
        assert (found[name] == array).all()
    backbone = headless(family, input_shape=(32, 40, 3))
    load_checkpoint(backbone, source)
    found = to_torch_state_dict(backbone)
    assert len(set(source) - set(found)) == 4
    assert all((array == source[name]).all() for name, array in found.items())
