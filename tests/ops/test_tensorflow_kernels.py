"""Gradients of our own inside TensorFlow's graphs are those that TensorFlow computes operation by operation."""

import keras
import numpy as np
import pytest
from helpers import relative_error
from keras import ops

from keras_dualstream.ops.activation import gelu
from keras_dualstream.ops.activation import silu
from keras_dualstream.ops.linear import linear

pytestmark = pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="of TensorFlow's graphs")


def gradients(function, *arrays, shapes=None):
    """Those of the weighted sum of `function(*arrays)`, in a graph for tensors of these shapes, and its operations."""
    import tensorflow as tf

    def compute(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            y = function(*tensors)
            total = tf.reduce_sum(y * tf.cos(tf.stop_gradient(y)))
        return tape.gradient(total, tensors)

    signature = [tf.TensorSpec(shape, array.dtype) for shape, array in zip(shapes, arrays, strict=True)]
    graph = tf.function(compute, input_signature=signature).get_concrete_function()
    tensors = [tf.constant(array) for array in arrays]
    compiled = [op.name for op in graph.graph.get_operations() if "_XlaMustCompile" in op.node_def.attr]
    return graph(*tensors), compute(*tensors), compiled


@pytest.mark.parametrize("shape", [(3, 5, 7), (None, 5, 7), (None, None, 7)])
@pytest.mark.parametrize("function", [gelu, silu])
def test_activation(function, shape):
    x = 2 * np.random.default_rng(1).standard_normal((3, 5, 7)).astype("float32")
    found, expected, compiled = gradients(function, x, shapes=[shape])
    # XLA would compile for every size it meets.
    assert bool(compiled) == (shape[1] is not None)
    assert relative_error(found[0], expected[0]) < 1e-6


@pytest.mark.parametrize("function", [gelu, silu])
def test_activation_in_half_precision_is_tensorflows(function):
    x = np.random.default_rng(1).standard_normal((3, 5)).astype("float16")
    found, expected, compiled = gradients(function, x, shapes=[(None, 5)])
    assert not compiled
    np.testing.assert_allclose(found[0], expected[0], atol=2e-3)


@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 8), (2, 1, 3, 8)])
def test_linear_of_few_units(shape):
    rng = np.random.default_rng(2)
    x, kernel = rng.standard_normal(shape).astype("float32"), rng.standard_normal((8, 3)).astype("float32")
    found, _, _ = gradients(linear, x, kernel, shapes=[(None, *shape[1:]), (8, 3)])
    _, expected, _ = gradients(ops.matmul, x, kernel, shapes=[shape, (8, 3)])
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) < 5e-7
