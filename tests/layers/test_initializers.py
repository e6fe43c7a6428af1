"""Initial values are Keras' own, and made on the host."""

import functools

import keras
import numpy as np
import pytest

from keras_dualstream.layers.convolution import Conv2D
from keras_dualstream.layers.depthwise_conv import DepthwiseConv2D
from keras_dualstream.layers.float64 import BatchNormalization
from keras_dualstream.layers.float64 import Dense
from keras_dualstream.layers.float64 import LayerNormalization
from keras_dualstream.layers.group_normalization import GroupNormalization
from keras_dualstream.layers.initializers import TruncatedNormal
from keras_dualstream.layers.layer_scale import LayerScale
from keras_dualstream.layers.osra import PositionBias

# Each with a size that no other test has, for which JAX would have its programs already.
LAYERS = {
    "dense": (functools.partial(Dense, 71, kernel_initializer=TruncatedNormal()), (None, 3)),
    "convolution": (functools.partial(Conv2D, 72, 1, kernel_initializer=TruncatedNormal()), (None, 4, 4, 3)),
    "depthwise": (functools.partial(DepthwiseConv2D, 1, depthwise_initializer=TruncatedNormal()), (None, 4, 4, 73)),
    "layer norm": (LayerNormalization, (None, 74)),
    "batch norm": (BatchNormalization, (None, 75)),
    "group norm": (GroupNormalization, (None, 76)),
    "layer scale": (functools.partial(LayerScale, 0.25, use_bias=True), (None, 77)),
    "position bias": (functools.partial(PositionBias, 7, 2, 3), (None, 2, 3, 8)),
}


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "float16"])
@pytest.mark.parametrize("name", LAYERS)
def test_no_program_is_compiled_for_initial_values(name, dtype, caplog):
    if keras.config.backend() != "jax":
        pytest.skip("JAX alone compiles a program for an array of zeros.")
    import jax

    create, shape = LAYERS[name]
    layer = create(dtype=dtype)
    with jax.log_compiles():
        layer.build(shape)
    assert [record for record in caplog.records if "Finished XLA compilation" in record.getMessage()] == []


@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_bfloat16", "bfloat16"])
def test_constants_are_those_asked_for(dtype):
    layer = BatchNormalization(
        beta_initializer=keras.initializers.Constant(0.375), moving_mean_initializer="ones", dtype=dtype
    )
    layer.build((None, 3))
    found = {weight.name: keras.ops.convert_to_numpy(weight).astype("float64").tolist() for weight in layer.weights}
    assert found == {"gamma": [1] * 3, "beta": [0.375] * 3, "moving_mean": [1] * 3, "moving_variance": [1] * 3}
    assert {keras.backend.standardize_dtype(weight.dtype) for weight in layer.weights} == {layer.variable_dtype}


@pytest.mark.parametrize(("value", "dtype"), [(2**24 + 1, "int32"), (2**32 - 1, "uint32"), (-3, "int8")])
def test_whole_numbers_stay_exact(value, dtype):
    initializer = keras.initializers.Constant(value)
    layer = Dense(2)
    weight = layer.add_weight(shape=(2,), initializer=initializer, dtype=dtype, trainable=False)
    assert keras.ops.convert_to_numpy(weight).tolist() == [value] * 2


def test_configs_name_initializers_as_keras_does():
    config, of_keras = (layer(2).get_config() for layer in (Dense, keras.layers.Dense))
    assert config["bias_initializer"] == of_keras["bias_initializer"]


def test_other_initializers_are_left_alone():
    layer = Dense(2, kernel_initializer="identity", bias_initializer=lambda shape, dtype: keras.ops.full(shape, 3.0))
    layer.build((None, 2))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.kernel), np.eye(2))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.bias), [3, 3])
