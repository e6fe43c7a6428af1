"""Softmax along an axis that is not the last."""

import keras
import numpy as np
import pytest
from helpers import gradients_of
from helpers import images
from helpers import relative_error
from keras import ops

from keras_dualstream.ops import softmax as softmax_module
from keras_dualstream.ops.softmax import softmax


def exact(x, axis):
    powers = np.exp(x.astype("float64") - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def in_a_graph(function):
    if keras.config.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.function(function)


@pytest.mark.parametrize("axis", [1, 2])
def test_values(axis, float64):
    # exp(300) is beyond float32.
    x = 300 * images(2, 3, 4, 5)
    for dtype, bound in (("float32", 1e-5), (float64, 1e-14)):
        found = in_a_graph(lambda x: softmax(x, axis))(ops.convert_to_tensor(x, dtype=dtype))
        assert keras.backend.standardize_dtype(found.dtype) == dtype
        assert relative_error(found, exact(x.astype(dtype), axis)) < bound


def test_half_precision_is_the_kernels():
    """Several operations would round several times."""
    x = ops.cast(images(2, 3, 4, 5), "bfloat16")
    found, expected = (
        ops.cast(in_a_graph(f)(x), "float32") for f in (lambda x: softmax(x, 2), lambda x: ops.softmax(x, 2))
    )
    np.testing.assert_array_equal(ops.convert_to_numpy(found), ops.convert_to_numpy(expected))


def test_gradients():
    x, weights = images(2, 3, 4, 5), images(2, 3, 4, 5, seed=1)
    (found,) = gradients_of(in_a_graph(lambda x: softmax(x, 2)), weights, [x], "float32")
    y = exact(x, 2)
    assert relative_error(found, y * (weights - (y * weights).sum(2, keepdims=True))) < 1e-6


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only there the last axis is another kernel's")
def test_transposes_nothing_on_tensorflow():
    import tensorflow as tf

    graph = in_a_graph(lambda x: softmax(x, 2)).get_concrete_function(tf.TensorSpec((None, 3, 4, 5))).graph
    assert not {"Transpose", "Softmax"} & {operation.type for operation in graph.get_operations()}


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only there the last axis is another kernel's")
def test_exported_graphs_have_the_operation(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(softmax_module, "exporting", lambda: True)
    graph = in_a_graph(lambda x: softmax(x, 2)).get_concrete_function(tf.TensorSpec((None, 3, 4, 5))).graph
    assert "Softmax" in {operation.type for operation in graph.get_operations()}
