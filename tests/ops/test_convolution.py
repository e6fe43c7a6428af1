"""Convolution equals the sum over its taps, and so do its gradients."""

import keras
import numpy as np
import pytest
from helpers import Convolution
from helpers import gradient_function
from helpers import gradients_by_differences
from helpers import images
from helpers import relative_error
from keras import ops

from keras_dualstream.ops import jax_convolution
from keras_dualstream.ops import pieces
from keras_dualstream.ops.convolution import conv2d


def by_taps(x, kernel, strides, zeros):
    """The sum over a kernel's taps in float64."""
    x = np.pad(x, ((0, 0), (zeros, zeros), (zeros, zeros), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))[
        :, :: strides[0], :: strides[1]
    ]
    return np.einsum("bijcuv,uvcf->bijf", windows, kernel)


CASES = [
    ((5, 6, 3), (3, 3), (2, 2), 1, 4),
    ((6, 5, 3), (3, 3), (1, 1), 1, 40),
    ((8, 5, 3), (4, 4), (4, 4), 0, 2),
    ((9, 8, 2), (5, 3), (2, 1), 2, 3),
    ((5, 4, 3), (1, 1), (2, 2), 0, 2),
    ((7, 6, 5), (3, 3), (2, 2), 1, 4),
    ((6, 8, 4), (2, 2), (2, 2), 0, 3),
]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, at_once, float64, monkeypatch):
    if not at_once:
        monkeypatch.setattr(jax_convolution, "WINDOWS_AT_ONCE", 0)
        monkeypatch.setattr(pieces, "PIECE", 1)
    size, kernel_size, strides, zeros, filters = case
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, *size))
    kernel = rng.standard_normal((*kernel_size, size[-1], filters))
    bias = rng.standard_normal(filters)
    y = by_taps(x, kernel, strides, zeros)
    for dtype, bound in (("float32", 1e-6), (float64, 1e-14)):
        tensors = [ops.convert_to_tensor(array, dtype=dtype) for array in (x, kernel, bias)]
        assert relative_error(conv2d(*tensors, strides, zeros), y + bias) < bound
    weights = rng.standard_normal(y.shape)
    expected = gradients_by_differences(
        lambda x, kernel: (by_taps(x, kernel, strides, zeros) * weights).sum(), x, kernel
    )
    layer = Convolution(
        x.astype("float32"), kernel.astype("float32"), lambda x, kernel: conv2d(x, kernel, None, strides, zeros)
    )
    total, gradients = gradient_function(layer, lambda total: total)(weights.astype("float32"))
    assert abs(total - (y * weights).sum()) < 1e-6 * np.abs(y * weights).sum()
    for found, exact in zip(gradients, expected, strict=True):
        assert relative_error(found, exact) < 1e-6


@pytest.mark.parametrize(("channels", "stride"), [(1, 1), (4, 1), (4, 2)])
def test_half_precision_sums_the_gradient_in_float32(channels, stride):
    """A thousand products of 1 and 1 + 2⁻⁷, which bfloat16 would round away one by one."""

    def convolve(x, kernel):
        y = conv2d(ops.cast(x, "bfloat16"), ops.cast(kernel, "bfloat16"), None, (stride, stride), 0)
        return ops.cast(y, "float32")

    layer = Convolution(np.ones((1, 32 * stride, 32 * stride, channels)), np.ones((1, 1, channels, 1)), convolve)
    weights = np.full((1, 32, 32, 1), 1 + 2.0**-7, "float32")
    _, (_, gradient) = gradient_function(layer, lambda total: total)(weights)
    np.testing.assert_allclose(gradient, np.full((1, 1, channels, 1), 1024 * (1 + 2.0**-7)), rtol=2.0**-7)


@pytest.mark.skipif(keras.config.backend() == "jax", reason="oneDNN writes beyond its buffers, which XLA does not ask")
def test_one_tap_reads_its_positions_before_the_kernel(monkeypatch):
    seen = []
    if keras.config.backend() == "torch":
        import torch

        # The kernel's strides are its fourth argument, those of `keras.ops` the third.
        place, name, at = torch.nn.functional, "conv2d", 3
    else:
        place, name, at = ops, "conv", 2
    kernel_of_backend = getattr(place, name)

    def convolve(*args, **options):
        seen.append((tuple(args[0].shape), tuple(args[at])))
        return kernel_of_backend(*args, **options)

    monkeypatch.setattr(place, name, convolve)
    x, kernel = images(2, 9, 8, 4), images(1, 1, 4, 2, seed=1)
    for strides, zeros, (height, width) in (((2, 2), 0, (5, 4)), ((3, 1), 0, (3, 8)), ((2, 2), 1, (6, 5))):
        y = conv2d(ops.convert_to_tensor(x), ops.convert_to_tensor(kernel), None, strides, zeros)
        assert relative_error(y, by_taps(x, kernel, strides, zeros)) < 1e-6
        shape = (2, 4, height, width) if keras.config.backend() == "torch" else (2, height, width, 4)
        assert seen.pop() == (shape, (1, 1))
