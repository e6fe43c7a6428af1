"""A convolution and its normalisation as one."""

import keras
import numpy as np
import pytest
from helpers import relative_error
from helpers import to_numpy
from keras import ops

from keras_dualstream.layers import DepthwiseConv2D
from keras_dualstream.layers.convolution import Conv2D
from keras_dualstream.layers.float64 import BatchNormalization
from keras_dualstream.layers.float64 import Dense
from keras_dualstream.layers.folding import normalized

CONVOLUTIONS = {
    "linear": lambda **options: Dense(6, **options),
    "convolution": lambda **options: Conv2D(6, 3, strides=2, zeros=1, **options),
    "depthwise": lambda **options: DepthwiseConv2D(3, padding="same", data_format="channels_last", **options),
    "two kernels": lambda **options: DepthwiseConv2D(
        3, padding=1, depth_multiplier=2, data_format="channels_last", **options
    ),
}


def make(convolution, dtype, use_bias=True, **options):
    """A convolution and a normalisation with weights that are not their first ones, and a map."""
    rng = np.random.default_rng(0)
    convolution = CONVOLUTIONS[convolution](use_bias=use_bias, dtype=dtype)
    norm = BatchNormalization(epsilon=1e-3, dtype=dtype, **options)
    x = ops.convert_to_tensor(rng.normal(size=(2, 5, 7, 4)), dtype=convolution.compute_dtype)
    norm(convolution(x))
    for layer in (convolution, norm):
        layer.set_weights([rng.uniform(0.5, 2.0, weight.shape) for weight in layer.get_weights()])
    return norm, convolution, x


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_equals_both_in_turn(convolution, use_bias, float64):
    for dtype, bound in ((float64, 1e-14), ("float32", 1e-6)):
        norm, layer, x = make(convolution, dtype, use_bias)
        expected = to_numpy(norm(layer(x)))
        assert relative_error(to_numpy(normalized(norm, layer, x)), expected) < bound


@pytest.mark.parametrize("options", [{"center": False}, {"scale": False}])
def test_without_scale_or_shift(options):
    norm, layer, x = make("linear", "float32", **options)
    assert relative_error(to_numpy(normalized(norm, layer, x)), to_numpy(norm(layer(x)))) < 1e-6


def test_training_uses_and_updates_the_statistics():
    norm, layer, x = make("depthwise", "float32")
    before = to_numpy(norm.moving_mean)
    y = to_numpy(normalized(norm, layer, x, training=True))
    assert not np.array_equal(before, to_numpy(norm.moving_mean))
    other_norm, other, x = make("depthwise", "float32")
    np.testing.assert_array_equal(y, to_numpy(other_norm(other(x), training=True)))


def test_half_precision_does_not_round_the_kernel_twice():
    norm, layer, x = make("depthwise", "mixed_bfloat16")
    np.testing.assert_array_equal(
        to_numpy(ops.cast(normalized(norm, layer, x), "float32")), to_numpy(ops.cast(norm(layer(x)), "float32"))
    )


def test_quantised_layers_stay_so():
    norm, layer, x = make("linear", "float32")
    layer.quantize("int8", type_check=False)
    np.testing.assert_array_equal(to_numpy(normalized(norm, layer, x)), to_numpy(norm(layer(x))))
    assert keras.backend.standardize_dtype(layer.kernel.dtype) == "int8"
