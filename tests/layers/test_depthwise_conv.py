"""DepthwiseConv2D and Conv2D are Keras' own, computed otherwise."""

import keras
import numpy as np
import pytest
from helpers import images
from helpers import relative_error
from helpers import to_numpy

from keras_dualstream.layers import DepthwiseConv2D
from keras_dualstream.layers.convolution import Conv2D


@pytest.mark.parametrize(
    "options",
    [
        dict(kernel_size=3),
        dict(kernel_size=(3, 5), padding="same", activation="relu"),
        dict(kernel_size=3, strides=2, padding="same", use_bias=False),
        dict(kernel_size=3, dilation_rate=2, depth_multiplier=2),
    ],
)
def test_equals_keras(options):
    x = images(2, 9, 12, 4)
    options = {**options, "data_format": "channels_last", "bias_initializer": "random_normal"}
    ours, keras_own = DepthwiseConv2D(**options), keras.layers.DepthwiseConv2D(**options)
    found, _ = ours(x), keras_own(x)
    keras_own.set_weights(ours.get_weights())
    assert relative_error(found, keras_own(x)) < 1e-6
    assert ours.get_config().keys() == {*keras_own.get_config(), "residual"}


def test_takes_its_arguments_in_the_order_of_keras():
    ours, keras_own = DepthwiseConv2D(3, (1, 1), "same", 2), keras.layers.DepthwiseConv2D(3, (1, 1), "same", 2)
    assert {**ours.get_config(), "name": ""} == {**keras_own.get_config(), "name": "", "residual": False}


@pytest.mark.parametrize("padding", ["same", 1])
def test_a_residual_is_added_before_the_activation(padding):
    x = images(2, 9, 12, 4)
    options = {"padding": padding, "data_format": "channels_last", "bias_initializer": "random_normal"}
    layer = DepthwiseConv2D(3, activation="relu", residual=True, **options)
    restored, plain = DepthwiseConv2D.from_config(layer.get_config()), DepthwiseConv2D(3, **options)
    found, _, _ = layer(x), restored(x), plain(x)
    for other in (restored, plain):
        other.set_weights(layer.get_weights())
    expected = np.maximum(to_numpy(x) + to_numpy(plain(x)), 0)
    assert relative_error(found, expected) < 1e-6
    assert relative_error(restored(x), expected) < 1e-6


@pytest.mark.parametrize(
    "options",
    [{"strides": 2, "padding": "same"}, {}, {"padding": (1, 0)}, {"padding": "same", "depth_multiplier": 2}],
)
def test_a_residual_of_another_shape_is_named(options):
    with pytest.raises(
        ValueError, match="`residual` the result must have the shape.* Received: kernel_size=3, strides="
    ):
        DepthwiseConv2D(3, data_format="channels_last", residual=True, **options)


def test_a_residual_that_is_no_bool_is_named():
    with pytest.raises(ValueError, match="`residual` must be a bool. Received: residual='yes'"):
        DepthwiseConv2D(3, padding="same", residual="yes")


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("padding", [1, np.int64(2), (0, 2), ((0, 1), (2, 0))])
def test_explicit_padding_survives_the_config_and_gives_the_shape(padding, data_format):
    layer = DepthwiseConv2D(3, strides=2, padding=padding, data_format=data_format)
    restored = DepthwiseConv2D.from_config(layer.get_config())
    assert restored.padding == layer.padding
    x = images(2, 9, 12, 7)
    assert tuple(restored(x).shape) == restored.compute_output_shape(x.shape)


def test_a_map_smaller_than_the_kernel_is_named():
    layer = DepthwiseConv2D(7, padding=1, data_format="channels_last")
    with pytest.raises(ValueError, match=r"must not be smaller than the kernel \(7, 7\).*Received: .*\(1, 3, 9, 4\)"):
        layer.compute_output_shape((1, 3, 9, 4))


@pytest.mark.parametrize(("kernel_size", "strides", "zeros"), [(3, 1, 1), (3, 2, 1), (7, 4, 3), (2, 2, 0)])
def test_convolution_adds_its_zeros(kernel_size, strides, zeros):
    x = np.random.default_rng(0).normal(size=(2, 9, 11, 3)).astype("float32")
    layer = Conv2D(5, kernel_size, strides, zeros, activation="relu", bias_initializer="ones")
    found = layer(x)
    padded = keras.layers.ZeroPadding2D(zeros, data_format="channels_last")(x)
    expected = keras.ops.conv(padded, layer.kernel, strides, "valid", data_format="channels_last") + layer.bias
    np.testing.assert_allclose(to_numpy(found), np.maximum(to_numpy(expected), 0), atol=1e-5)
    assert layer.compute_output_shape(x.shape) == tuple(found.shape)
    assert Conv2D.from_config(layer.get_config()).get_config() == layer.get_config()
