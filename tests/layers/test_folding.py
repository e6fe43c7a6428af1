"""A convolution and its normalisation as one."""

import keras
import numpy as np
import pytest
from helpers import relative_error
from helpers import to_numpy
from keras import ops

from keras_dualstream.layers import DepthwiseConv2D
from keras_dualstream.layers import PatchEmbedding
from keras_dualstream.layers.convolution import Conv2D
from keras_dualstream.layers.float64 import BatchNormalization
from keras_dualstream.layers.float64 import Dense
from keras_dualstream.layers.folding import normalized

CONVOLUTIONS = {
    "linear": lambda **options: Dense(6, **options),
    "convolution": lambda **options: Conv2D(6, 3, strides=2, zeros=1, **options),
    "depthwise": lambda **options: DepthwiseConv2D(3, padding="same", data_format="channels_last", **options),
    "residual": lambda **options: DepthwiseConv2D(
        3, padding="same", data_format="channels_last", residual=True, **options
    ),
    "two kernels": lambda **options: DepthwiseConv2D(
        3, padding=1, depth_multiplier=2, data_format="channels_last", **options
    ),
}


def make(convolution, dtype, use_bias=True, norm_dtype=None, **options):
    """A convolution and a normalisation with weights that are not their first ones, and a map."""
    rng = np.random.default_rng(0)
    convolution = CONVOLUTIONS[convolution](use_bias=use_bias, dtype=dtype)
    norm = BatchNormalization(epsilon=1e-3, dtype=norm_dtype or dtype, **options)
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


def test_runs_one_convolution(monkeypatch):
    norm, layer, x = make("depthwise", "float32")
    monkeypatch.setattr(type(norm), "call", None)
    normalized(norm, layer, x)


@pytest.mark.parametrize(
    ("dtype", "norm_dtype"),
    [("mixed_bfloat16", "mixed_bfloat16"), ("mixed_bfloat16", "float32"), ("float32", "mixed_bfloat16")],
)
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_policies_that_round_run_both_in_turn(convolution, dtype, norm_dtype):
    norm, layer, x = make(convolution, dtype, norm_dtype=norm_dtype)
    for given in (x, ops.cast(x, "float32")):
        found, expected = (ops.cast(y, "float32") for y in (normalized(norm, layer, given), norm(layer(given))))
        np.testing.assert_array_equal(to_numpy(found), to_numpy(expected))


def test_a_kernel_that_the_layer_around_rounds():
    around = PatchEmbedding(6, normalization="batch", dtype="mixed_bfloat16")
    x = ops.cast(np.random.default_rng(0).normal(size=(1, 16, 16, 3)), "bfloat16")
    around(x)
    around.projection.dtype_policy = "float32"
    assert np.isfinite(to_numpy(ops.cast(around(x, training=False), "float32"))).all()


@pytest.mark.skipif(keras.config.backend() != "torch", reason="hooks are PyTorch's")
def test_hooks_of_both_layers_run():
    norm, layer, x = make("linear", "float32")
    for part in (norm, layer):
        seen = []
        hook = part.register_forward_hook(lambda *arguments, seen=seen: seen.append(arguments))
        normalized(norm, layer, x)
        hook.remove()
        assert len(seen) == 1


def test_quantised_layers_stay_so():
    norm, layer, x = make("linear", "float32")
    layer.quantize("int8", type_check=False)
    np.testing.assert_array_equal(to_numpy(normalized(norm, layer, x)), to_numpy(norm(layer(x))))
    assert keras.backend.standardize_dtype(layer.kernel.dtype) == "int8"
