"""DepthwiseConv2D is Keras' own, computed otherwise."""

import keras
import pytest
from helpers import images
from helpers import relative_error

from keras_dualstream.layers import DepthwiseConv2D


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
    assert ours.get_config().keys() == keras_own.get_config().keys()
