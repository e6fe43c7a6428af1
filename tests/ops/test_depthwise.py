"""Depthwise convolution equals the loop over its taps."""

import keras
import numpy as np
import pytest
from helpers import relative_error
from keras import ops

from keras_dualstream.ops.depthwise import depthwise_conv2d


def depthwise_by_loop(x, kernel, strides, padding, dilation):
    """One output pixel at a time, with TensorFlow's meaning of "same"."""
    reach = [(size - 1) * rate + 1 for size, rate in zip(kernel.shape, dilation, strict=False)]
    if padding == "same":
        sizes = [-(-size // step) for size, step in zip(x.shape[1:3], strides, strict=True)]
        totals = [
            max((size - 1) * step + r - n, 0)
            for size, step, r, n in zip(sizes, strides, reach, x.shape[1:3], strict=True)
        ]
        x = np.pad(x, [(0, 0), *((total // 2, total - total // 2) for total in totals), (0, 0)])
    else:
        sizes = [(n - r) // step + 1 for n, r, step in zip(x.shape[1:3], reach, strides, strict=True)]
    y = np.zeros((len(x), *sizes, x.shape[-1]))
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            for u in range(kernel.shape[0]):
                for v in range(kernel.shape[1]):
                    pixel = x[:, i * strides[0] + u * dilation[0], j * strides[1] + v * dilation[1]]
                    y[:, i, j] += pixel * kernel[u, v, :, 0]
    return y


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    ("size", "kernel_size", "strides", "dilation"),
    [
        ((7, 10), (3, 3), (1, 1), (1, 1)),
        ((8, 9), (5, 3), (2, 2), (1, 1)),
        ((9, 9), (4, 2), (1, 1), (1, 1)),
        ((11, 12), (3, 3), (1, 1), (2, 2)),
    ],
)
def test_equals_the_loop(size, kernel_size, strides, dilation, padding):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, 4)).astype("float32")
    kernel = rng.standard_normal((*kernel_size, 4, 1)).astype("float32")
    found = depthwise_conv2d(x, kernel, strides, padding, dilation)
    assert relative_error(found, depthwise_by_loop(x, kernel, strides, padding, dilation)) < 1e-6


def test_a_multiplier_gives_each_channel_several():
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((1, 5, 6, 3)).astype("float32"), rng.standard_normal((3, 3, 3, 2)).astype("float32")
    found = ops.reshape(depthwise_conv2d(x, kernel, padding="same"), (1, 5, 6, 3, 2))
    for m in range(2):
        expected = depthwise_by_loop(x, kernel[..., m : m + 1], (1, 1), "same", (1, 1))
        assert relative_error(found[..., m], expected) < 1e-6


@pytest.mark.skipif(keras.config.backend() == "tensorflow", reason="TensorFlow convolves channels-first on GPU only")
def test_channels_first_is_the_transpose():
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((1, 5, 6, 3)).astype("float32"), rng.standard_normal((3, 3, 3, 1)).astype("float32")
    found = depthwise_conv2d(x.transpose(0, 3, 1, 2), kernel, padding="same", data_format="channels_first")
    expected = depthwise_conv2d(x, kernel, padding="same")
    assert relative_error(ops.transpose(found, (0, 2, 3, 1)), expected) < 1e-6
