"""Linear maps equal the product, and so do their gradients, from more channels to fewer and the other way."""

import numpy as np
import pytest
from helpers import Convolution
from helpers import gradient_function
from helpers import relative_error
from keras import ops

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
