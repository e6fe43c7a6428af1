"""GELU is the exact one."""

import math

import keras
import numpy as np
import pytest
from helpers import central_differences
from helpers import gradients_of
from helpers import to_numpy
from keras import ops

from keras_dualstream.ops.activation import gelu
from keras_dualstream.ops.activation import silu


def exact(x):
    return np.array([value * 0.5 * math.erfc(-value / math.sqrt(2)) for value in x.astype("float64")])


def test_equals_the_error_function():
    x = np.linspace(-6, 6, 101).astype("float32")
    # Two roundings of x: the value is x times a number that float32 has to round itself.
    error = np.abs(to_numpy(gelu(ops.convert_to_tensor(x))) - exact(x))
    assert (error <= np.minimum(2 * np.finfo("float32").eps * np.abs(x) + 1e-12, 1e-6)).all()


def test_float64_equals_the_error_function(float64):
    x = np.linspace(-6, 6, 101)
    np.testing.assert_allclose(to_numpy(gelu(ops.convert_to_tensor(x, dtype=float64))), exact(x), atol=1e-15)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_rounds_the_value_once(dtype):
    # Left of -4 the sum cancels in float32 too.
    x = to_numpy(ops.cast(ops.convert_to_tensor(np.linspace(-4, 4, 801)), dtype)).astype("float64")
    found = to_numpy(gelu(ops.cast(ops.convert_to_tensor(x), dtype))).astype("float64")
    half_a_step = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    assert (np.abs(found - exact(x)) <= half_a_step * np.abs(exact(x)) + 1e-6).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_in_half_precision(dtype):
    x = to_numpy(ops.cast(ops.convert_to_tensor(np.linspace(-3, 3, 25)), dtype)).astype("float32")
    (found,) = gradients_of(lambda x: ops.cast(gelu(ops.cast(x, dtype)), "float32"), np.ones(25), [x], "float32")
    expected = central_differences(lambda x: exact(x).sum(), [x.astype("float64")], 0)
    np.testing.assert_allclose(found, expected, atol={"float16": 1e-3, "bfloat16": 6e-3}[dtype])


@pytest.mark.parametrize(("function", "keras_function"), [(gelu, "gelu"), (silu, "silu")])
def test_what_a_gradient_needs_stays(function, keras_function):
    x = keras.Variable(np.linspace(-2, 2, 9))
    value = to_numpy(x)
    y = function(ops.convert_to_tensor(x))
    options = {"approximate": False} if keras_function == "gelu" else {}
    np.testing.assert_allclose(to_numpy(y), to_numpy(getattr(ops, keras_function)(x, **options)), rtol=1e-6)
    np.testing.assert_array_equal(to_numpy(x), value)


@pytest.mark.parametrize(("function", "formula"), [(gelu, exact), (silu, lambda x: x / (1 + np.exp(-x)))])
def test_gradients_equal_differences(function, formula, float64):
    x, weights = np.linspace(-5, 5, 21), np.random.default_rng(0).standard_normal(21)
    (found,) = gradients_of(function, weights, [x], float64)
    expected = central_differences(lambda x: (formula(x) * weights).sum(), [x], 0)
    np.testing.assert_allclose(found, expected, atol=1e-8)
