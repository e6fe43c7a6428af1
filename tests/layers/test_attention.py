"""Attention's arguments and errors."""

import numpy as np
import pytest

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
