"""Linear maps equal the product, and so do their gradients, from more channels to fewer and the other way."""

import keras
import numpy as np
import pytest
from helpers import Convolution
from helpers import gradient_function
from helpers import images
from helpers import relative_error
from helpers import without_gradients
from keras import ops

from keras_dualstream.ops import pytorch_kernels
from keras_dualstream.ops.linear import linear


@pytest.mark.parametrize(("channels", "units"), [(7, 3), (3, 7), (5, 5)])
@pytest.mark.parametrize("size", [(4,), (2, 4, 5)])
def test_values_and_gradients(size, channels, units, float64):
    rng = np.random.default_rng(0)
    x, kernel, bias = (rng.standard_normal(shape) for shape in ((*size, channels), (channels, units), (units,)))
    weights = rng.standard_normal((*size, units))
    for dtype, bound in (("float32", 1e-6), (float64, 1e-14)):
        tensors = [ops.convert_to_tensor(array, dtype=dtype) for array in (x, kernel, bias)]
        assert relative_error(linear(*tensors), x @ kernel + bias) < bound
    layer = Convolution(x.astype("float32"), kernel.astype("float32"), linear)
    _, (for_x, for_kernel) = gradient_function(layer, lambda total: total)(weights.astype("float32"))
    assert relative_error(for_x, weights @ kernel.T) < 1e-6
    assert relative_error(for_kernel, x.reshape(-1, channels).T @ weights.reshape(-1, units)) < 1e-6


@pytest.mark.skipif(keras.config.backend() != "torch", reason="a choice between PyTorch's kernels")
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(("size", "as_map"), [((8,), True), ((2, 4), True), ((2, 3, 2), True), ((7,), False)])
def test_many_rows_are_a_map_for_pytorch_at_inference(size, as_map, use_bias, monkeypatch):
    import torch

    calls = []
    convolution = torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *given: calls.append(given) or convolution(*given))
    monkeypatch.setattr(pytorch_kernels, "ROWS_AS_MAP", 8)
    x, kernel, bias = images(*size, 5), images(5, 3, seed=1), images(3, seed=2)
    expected = x @ kernel + bias * use_bias
    turned = ops.swapaxes(ops.convert_to_tensor(np.swapaxes(x, 0, -1)), 0, -1)
    for given in (ops.convert_to_tensor(x), turned):
        assert relative_error(linear(given, kernel, bias if use_bias else None), expected) < 1e-6
        assert not calls
        with without_gradients():
            assert relative_error(linear(given, kernel, bias if use_bias else None), expected) < 1e-6
            assert bool(calls) == as_map
            calls.clear()
            linear(ops.cast(given, "float64"), ops.cast(kernel, "float64"))
            assert not calls


def test_no_rows_or_channels():
    for size, channels, units in (((2, 0), 4, 3), ((0, 5), 4, 3), ((3000,), 0, 2)):
        with without_gradients():
            y = linear(ops.zeros((*size, channels)), ops.zeros((channels, units)), ops.ones((units,)))
        assert y.shape == (*size, units)
