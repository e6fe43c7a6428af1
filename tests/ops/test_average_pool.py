"""Average pooling against PyTorch's, its gradient too, and without a window reduction on XLA's CPU."""

import keras
import numpy as np
import pytest
from helpers import gradients_of
from helpers import relative_error
from helpers import to_numpy
from keras import ops

from keras_dualstream.layers import SemanticTokens
from keras_dualstream.ops.average_pool import average_pool
from keras_dualstream.ops.resample import adaptive_average_pool

CASES = [((2, 14, 21, 3), (7, 7)), ((1, 15, 23, 2), (7, 7)), ((2, 9, 8, 1), (3, 2)), ((1, 5, 4, 3), (1, 4))]


def pooled_by_torch(x, window, weights):
    """PyTorch's result, and the gradient of its weighted sum."""
    import torch

    maps = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    pooled = torch.nn.functional.avg_pool2d(maps, window)
    (pooled * torch.tensor(weights.transpose(0, 3, 1, 2))).sum().backward()
    return (each.detach().permute(0, 2, 3, 1).numpy() for each in (pooled, maps.grad))


@pytest.mark.parametrize(("shape", "window"), CASES)
def test_equals_pytorch_in_float64(shape, window, float64):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    weights = rng.standard_normal((shape[0], shape[1] // window[0], shape[2] // window[1], shape[3]))
    expected, gradient = pooled_by_torch(x, window, weights)
    assert relative_error(average_pool(ops.convert_to_tensor(x, dtype=float64), window), expected) < 1e-14
    (found,) = gradients_of(lambda x: average_pool(x, window), weights, [x], float64)
    assert relative_error(found, gradient) < 1e-14


def test_half_precision_rounds_once():
    x = np.random.default_rng(0).uniform(1, 2, (1, 28, 28, 4))
    x = ops.convert_to_tensor(x, dtype="bfloat16")
    exact = to_numpy(ops.cast(x, "float32")).astype("float64").reshape(1, 2, 14, 2, 14, 4).mean((2, 4))
    found = average_pool(x, (14, 14))
    assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"
    # Eight bits of precision: half of the last one's distance.
    assert np.abs(to_numpy(ops.cast(found, "float32")) - exact).max() <= 2**-8


def semantic_tokens(x):
    layer = SemanticTokens(grid_size=2)
    layer.build(x.shape)
    return layer(x)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="reads JAX' programs")
@pytest.mark.parametrize(
    "pools", [lambda x: average_pool(x, (7, 7)), lambda x: adaptive_average_pool(x, 2, 2), semantic_tokens]
)
def test_is_no_window_reduction_on_jax(pools):
    """Whose gradient takes 40 ms where this one takes 0.4."""
    import jax

    gradient = jax.grad(lambda x: ops.sum(pools(x)))
    assert "reduce_window" not in str(jax.make_jaxpr(gradient)(np.zeros((1, 14, 14, 2), "float32")))


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="compiles for TensorFlow")
@pytest.mark.parametrize(("jit_compile", "operation"), [(True, "Mean"), (False, "AvgPool")])
def test_is_no_window_reduction_under_tensorflows_xla(jit_compile, operation):
    import tensorflow as tf

    traced = tf.function(lambda x: average_pool(x, (7, 7)), jit_compile=jit_compile)
    graph = traced.get_concrete_function(tf.TensorSpec((1, 14, 14, 2), "float32")).graph
    assert {"Mean", "AvgPool"} & {x.type for x in graph.get_operations()} == {operation}


@pytest.mark.skipif(keras.config.backend() == "torch", reason="PyTorch refuses it")
def test_a_window_that_does_not_fit_gives_nothing():
    assert average_pool(ops.ones((1, 5, 14, 2)), (7, 7)).shape == (1, 0, 2, 2)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="compiles and traces for TensorFlow")
@pytest.mark.parametrize("size", [(None, None), (15, 14)])
def test_xla_and_sizes_unknown_while_tracing_give_the_same(size):
    import tensorflow as tf

    x = np.random.default_rng(0).standard_normal((2, 15, 14, 3)).astype("float32")
    signature = [tf.TensorSpec((None, *size, 3), "float32")]
    for jit_compile in (False, True):
        traced = tf.function(lambda x: average_pool(x, (7, 7)), input_signature=signature, jit_compile=jit_compile)
        assert relative_error(traced(x), average_pool(ops.convert_to_tensor(x), (7, 7))) < 1e-6
