"""Window attention against a loop over every query and the keys that it may see."""

import keras
import numpy as np
import pytest
from helpers import compiled
from helpers import images
from helpers import randomize
from helpers import relative_error
from helpers import to_numpy

from keras_dualstream import layers

CHANNELS, HEADS = 8, 2


def built(window_size, shift_size=0, **options):
    layer = layers.WindowAttention(HEADS, window_size, shift_size, **options)
    layer.build((None, None, None, CHANNELS))
    return randomize(layer)


def by_definition(layer, x, window, shift):
    """Every query on its own: the keys of its window that lie in the map, those across the map's end 100 below."""
    _, height, width, _ = x.shape
    rows, columns = (-(-size // window) * window for size in (height, width))
    qkv = x @ to_numpy(layer.query_key_value.kernel) + to_numpy(layer.query_key_value.bias)
    table, y = to_numpy(layer.bias_table), np.zeros_like(x)
    for i, j in np.ndindex(height, width):
        # Where the position lies after the shift, and the window there.
        moved = (i - shift) % rows, (j - shift) % columns
        first = [place // window * window for place in moved]
        keys = []
        for a, b in np.ndindex(window, window):
            place = first[0] + a, first[1] + b
            k, n = (place[0] + shift) % rows, (place[1] + shift) % columns
            if k < height and n < width:
                across = (moved[0] >= rows - shift) != (place[0] >= rows - shift)
                across |= (moved[1] >= columns - shift) != (place[1] >= columns - shift)
                offset = [moved[axis] - place[axis] + layer.window_size - 1 for axis in (0, 1)]
                keys.append((k, n, -100.0 * across, offset[0] * (2 * layer.window_size - 1) + offset[1]))
        for head in range(HEADS):
            size = CHANNELS // HEADS
            q, key, value = (
                slice(part * CHANNELS + head * size, part * CHANNELS + (head + 1) * size) for part in (0, 1, 2)
            )
            for sample in range(len(x)):
                scores = [
                    qkv[sample, i, j, q] @ qkv[sample, k, n, key] / np.sqrt(size) + mask + table[entry, head]
                    for k, n, mask, entry in keys
                ]
                weights = np.exp(scores - np.max(scores))
                values = np.array([qkv[sample, k, n, value] for k, n, _, _ in keys])
                y[sample, i, j, head * size : (head + 1) * size] = weights / weights.sum() @ values
    return y @ to_numpy(layer.projection.kernel) + to_numpy(layer.projection.bias)


# The size of the map; window and shift of the layer; window and shift of the map.
CASES = {
    "whole windows": ((6, 9), (3, 0), (3, 0)),
    "shifted": ((6, 9), (3, 1), (3, 1)),
    "padded": ((4, 5), (3, 0), (3, 0)),
    "shifted and padded": ((4, 8), (3, 1), (3, 1)),
    "more padding than a window keeps after the shift": ((9, 10), (8, 5), (8, 5)),
    "a map as high as the window": ((3, 8), (3, 1), (3, 0)),
    "a map smaller than the window": ((5, 2), (4, 2), (2, 0)),
    "a single position": ((1, 1), (3, 1), (1, 0)),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_definition(case):
    size, own, expected = CASES[case]
    layer = built(*own)
    x = images(2, *size, CHANNELS)
    assert relative_error(compiled(layer)(x), by_definition(layer, x, *expected)) < 1e-6


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only TensorFlow has sizes unknown while tracing")
def test_sizes_unknown_while_tracing_give_the_same():
    import tensorflow as tf

    layer = built(4, 2)
    traced = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, CHANNELS), "float32")])
    for size in ((8, 12), (9, 5), (4, 9), (3, 2), (1, 1)):
        x = images(2, *size, CHANNELS)
        assert relative_error(traced(x), layer(x)) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(num_heads=2, window_size=0),
            "`num_heads` and `window_size` must be int and at least 1. Received: .*window_size=0",
        ),
        (dict(num_heads=2, window_size=3, shift_size=3), "`shift_size` must be at least 0 and smaller .*shift_size=3"),
        (dict(num_heads=2, shift_size=-1), "`shift_size` must be at least 0 and smaller .*shift_size=-1"),
    ],
)
def test_a_mistake_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        layers.WindowAttention(**options)
