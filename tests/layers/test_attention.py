"""Attention's arguments and errors."""

import numpy as np
import pytest
from helpers import images
from helpers import to_numpy

from keras_dualstream import layers


@pytest.mark.parametrize("layer", [layers.Attention, layers.SelfAttention])
def test_projection_is_optional(layer):
    x = np.ones((1, 3, 8), "float32")
    inputs = (x, x) if layer is layers.Attention else (x,)
    counts = []
    for use_projection in (True, False):
        attention = layer(2, use_projection=use_projection)
        attention(*inputs)
        counts.append(attention.count_params())
    assert counts[0] - counts[1] == 8 * 8 + 8


@pytest.mark.parametrize("layer", [layers.Attention, layers.SelfAttention])
def test_heads_that_do_not_divide_the_channels_are_refused(layer):
    x = np.ones((1, 3, 8), "float32")
    inputs = (x, x) if layer is layers.Attention else (x,)
    with pytest.raises(ValueError, match="`num_heads` must divide the channels.*num_heads=3, channels=8"):
        layer(3)(*inputs)


@pytest.mark.parametrize("layer", [layers.Attention, layers.SelfAttention])
def test_attention_weights_are_dropped_in_training_only(layer):
    x = images(2, 5, 8)
    inputs = (x, x) if layer is layers.Attention else (x,)
    attention = layer(2, attention_dropout_rate=0.5)
    known, first, second = (to_numpy(attention(*inputs, training=training)) for training in (False, True, True))
    np.testing.assert_array_equal(to_numpy(attention(*inputs)), known)
    assert (first != known).mean() > 0.5
    assert (first != second).mean() > 0.5
    with pytest.raises(ValueError, match=r"must be in \[0, 1\). Received: attention_dropout_rate=1.5"):
        layer(2, attention_dropout_rate=1.5)
