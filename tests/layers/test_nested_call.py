"""Layers inside layers compute the same by the short way as by Keras' own."""

import helpers
import keras
import numpy as np
import pytest
from keras import ops

from keras_dualstream import layers
from keras_dualstream.layers import nested_call
from keras_dualstream.layers.float64 import BatchNormalization
from keras_dualstream.layers.float64 import Dense

pytestmark = pytest.mark.skipif(keras.config.backend() != "torch", reason="the other backends trace layers once")


@keras.saving.register_keras_serializable(package="tests")
class Outer(keras.layers.Layer):
    """A layer that calls another and notes how."""

    def __init__(self, inner, arguments=None, **kwargs):
        super().__init__(**kwargs)
        self.inner, self.arguments = inner, arguments or {}

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x, training=None):
        return self.inner(x, **self.arguments)


@pytest.fixture
def long_way(monkeypatch):
    """The layers that went Keras' way."""
    called = []
    keras_call = keras.layers.Layer.__call__

    def call(self, *args, **kwargs):
        called.append(self)
        return keras_call(self, *args, **kwargs)

    monkeypatch.setattr(keras.layers.Layer, "__call__", call)
    return called


def torch_module():
    from torch.nn.modules import module

    return module


def images(channels=8, dtype="float32"):
    return ops.convert_to_tensor(np.random.default_rng(0).normal(size=(2, 6, 5, channels)).astype(dtype))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "float64"])
def test_same_numbers(monkeypatch, dtype, training):
    block = layers.TransXNetBlock(sr_ratio=2, dtype=dtype)
    x = images(16, dtype="float64" if dtype == "float64" else "float32")
    block(x)
    before = block.get_weights()
    expected_weights = []
    results = []
    for keras_way in (False, True):
        block.set_weights(before)
        with monkeypatch.context() as patch:
            if keras_way:
                patch.setattr(nested_call, "get_global_attribute", None)
            results.append(ops.convert_to_numpy(ops.cast(block(x, training=training), "float64")))
        expected_weights.append(block.get_weights())
    np.testing.assert_array_equal(*results)
    for given, expected in zip(*expected_weights, strict=True):
        np.testing.assert_array_equal(given, expected)
    changed = [not np.array_equal(*pair) for pair in zip(before, expected_weights[0], strict=True)]
    assert any(changed) == training


def test_goes_the_short_way_inside_a_layer_only(long_way):
    inner = Dense(4)
    outer = Outer(inner)
    outer(images())
    assert long_way == [outer]
    inner(images())
    assert long_way == [outer, inner]


@pytest.mark.parametrize("training", [False, True])
def test_takes_the_mode_of_the_layer_around(training):
    inner = BatchNormalization(momentum=0.5)
    outer = Outer(inner)
    outer(images(), training=training)
    assert np.any(ops.convert_to_numpy(inner.moving_mean)) == training


def test_another_mode_than_the_layer_around():
    inner = BatchNormalization(momentum=0.5)
    Outer(inner, {"training": False})(images(), training=True)
    assert not np.any(ops.convert_to_numpy(inner.moving_mean))


def test_none_is_a_mode_too():
    inner = BatchNormalization(momentum=0.5)
    Outer(inner, {"training": None})(images(), training=True)
    assert not np.any(ops.convert_to_numpy(inner.moving_mean))


def add_hook(layer):
    layer.register_forward_hook(lambda *arguments: None)


def give_another_policy(layer):
    layer.dtype_policy = "mixed_bfloat16"


WATCHED = {
    "hook": add_hook,
    "quantised": lambda layer: layer.quantize("int8", type_check=False),
    "another policy": give_another_policy,
    "compiled": lambda layer: layer.compile(backend="eager"),
    "another argument of the context": lambda layer: layer._register_call_context_args("mode"),
}


@pytest.mark.parametrize("change", WATCHED)
def test_goes_the_long_way(change, long_way):
    outer = Outer(Dense(4))
    outer.build((2, 6, 5, 8))
    WATCHED[change](outer.inner)
    outer(images())
    assert outer.inner in long_way


def test_global_hooks_see_every_layer(long_way):
    outer = Outer(Dense(4))
    outer(images())
    long_way.clear()
    hook = torch_module().register_module_forward_hook(lambda *arguments: None)
    outer(images())
    hook.remove()
    assert long_way == [outer, outer.inner]


def test_losses_of_outputs_count():
    outer = Outer(Dense(4, activity_regularizer="l2"))
    outer(images())
    assert outer.losses


def test_masks_are_warned_of(long_way):
    masked = images()
    keras.src.backend.common.masking.set_keras_mask(masked, ops.ones((2, 6)))
    outer = Outer(Dense(4))
    with pytest.warns(UserWarning, match="mask"):
        outer(masked)
    assert long_way[-1] is outer.inner


def test_what_a_hook_keeps_is_not_overwritten():
    feed_forward = layers.FeedForward()
    outer = Outer(feed_forward)
    outer.build((2, 6, 5, 8))
    outer.trainable = False
    kept = []
    feed_forward.expand.register_forward_hook(lambda layer, arguments, y: kept.append((y, y.clone())))
    outer(images())
    np.testing.assert_array_equal(*(ops.convert_to_numpy(y) for y in kept[0]))


def test_wrong_channels_get_keras_error():
    outer = Outer(Dense(4))
    outer(images())
    with pytest.raises(ValueError, match="expected axis -1 of input shape to have value 8"):
        outer(images(7))


class Reader(nested_call.NestedCall, keras.layers.Layer):
    """A layer that does not autocast, and notes the dtype in which it reads its weight."""

    def build(self, shape):
        self.weight = self.add_weight(shape=(shape[-1],))

    def call(self, x):
        self.read = keras.backend.standardize_dtype(self.weight.value.dtype)
        return x


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_layers_that_do_not_autocast_read_their_own_dtype(dtype, long_way):
    """Keras lifts the scope for them, in which the layer around would cast what they read."""
    outer = Outer(Reader(dtype=dtype, autocast=False), dtype=dtype)
    outer(ops.cast(images(), outer.compute_dtype))
    assert outer.inner.read == "float32"
    assert (outer.inner in long_way) == (dtype != "float32")


@pytest.mark.parametrize("make", [helpers.tiny_transxnet, helpers.tiny_dfvt])
def test_every_layer_of_a_model_goes_the_short_way(make, long_way):
    model = make()
    long_way.clear()
    model(ops.convert_to_tensor(helpers.images(1, *model.input_shape[1:])), training=False)
    names = {type(layer).__name__ for layer in long_way}
    assert names <= {"Functional", type(model).__name__, "Activation"}, names
