"""Initial values are Keras' own, and made on the host."""

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
    "dense": (lambda: Dense(71, kernel_initializer=TruncatedNormal()), (None, 3)),
    "convolution": (lambda: Conv2D(72, 1, kernel_initializer=TruncatedNormal()), (None, 4, 4, 3)),
    "depthwise": (lambda: DepthwiseConv2D(1, depthwise_initializer=TruncatedNormal()), (None, 4, 4, 73)),
    "layer norm": (LayerNormalization, (None, 74)),
    "batch norm": (BatchNormalization, (None, 75)),
    "group norm": (GroupNormalization, (None, 76)),
    "layer scale": (lambda: LayerScale(0.25, use_bias=True), (None, 77)),
    "position bias": (lambda: PositionBias(7, 2, 3), (None, 2, 3, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_no_program_is_compiled_for_initial_values(name, caplog):
    if keras.config.backend() != "jax":
        pytest.skip("JAX alone compiles a program for an array of zeros.")
    import jax

    create, shape = LAYERS[name]
    with jax.log_compiles():
        create().build(shape)
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


def test_configs_name_initializers_as_keras_does():
    config, of_keras = (layer(2).get_config() for layer in (Dense, keras.layers.Dense))
    assert config["bias_initializer"] == of_keras["bias_initializer"]


def test_other_initializers_are_left_alone():
    layer = Dense(2, kernel_initializer="identity", bias_initializer=lambda shape, dtype: keras.ops.full(shape, 3.0))
    layer.build((None, 2))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.kernel), np.eye(2))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.bias), [3, 3])
