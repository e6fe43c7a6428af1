"""Normalisations equal their formula, and so do their gradients."""

import math

import keras
import numpy as np
import pytest
from helpers import central_differences
from helpers import gradients_of
from helpers import relative_error

from keras_dualstream.layers.float64 import LayerNormalization
from keras_dualstream.layers.float64 import Normalization
from keras_dualstream.ops import compiler
from keras_dualstream.ops.normalization import batch_normalization as batch_normalization_by_statistics
from keras_dualstream.ops.normalization import batch_normalization_of_batch
from keras_dualstream.ops.normalization import batch_normalization_of_gelu
from keras_dualstream.ops.normalization import group_normalization
from keras_dualstream.ops.normalization import layer_normalization
from keras_dualstream.ops.normalization import standardization

EPSILON = 1e-3


def batch_normalization(x, gamma, beta, epsilon):
    return batch_normalization_of_batch(x, gamma, beta, epsilon)[0]


def normalization_of_gelu(x, gamma, beta, epsilon):
    if keras.config.backend() != "jax":
        pytest.skip("only JAX has it")
    return batch_normalization_of_gelu(x, gamma, beta, epsilon)[0]


def exact_gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def exact(x, gamma, beta, axes):
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + EPSILON) * gamma + beta


CASES = [
    (batch_normalization, (2, 3, 4, 5), (0, 1, 2)),
    (batch_normalization, (1, 3, 4, 1), (0, 1, 2)),
    (batch_normalization, (6, 5), (0,)),
    (normalization_of_gelu, (2, 3, 4, 5), (0, 1, 2)),
    (normalization_of_gelu, (6, 5), (0,)),
    (layer_normalization, (2, 3, 4, 5), (3,)),
    (layer_normalization, (1, 1, 5), (2,)),
    (group_normalization, (2, 3, 4, 5), (1, 2, 3)),
    (group_normalization, (1, 3, 1, 1), (1, 2, 3)),
]


@pytest.mark.parametrize(("normalize", "shape", "axes"), CASES)
def test_values_and_gradients(normalize, shape, axes, float64):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape), rng.standard_normal(shape[-1]), rng.standard_normal(shape[-1])]
    weights = rng.standard_normal(shape)
    tensors = [keras.ops.convert_to_tensor(array, dtype=float64) for array in arrays]
    before = exact_gelu if normalize is normalization_of_gelu else np.asarray

    def formula(x, gamma, beta):
        return exact(before(x), gamma, beta, axes)

    assert relative_error(normalize(*tensors, EPSILON), formula(*arrays)) < 1e-13
    gradients = gradients_of(lambda *tensors: normalize(*tensors, EPSILON), weights, arrays, float64)
    for position, found in enumerate(gradients):
        expected = central_differences(lambda *arrays: (formula(*arrays) * weights).sum(), arrays, position)
        assert relative_error(found, expected) < 1e-8


@pytest.mark.parametrize("normalize", [batch_normalization, layer_normalization])
def test_without_scale_and_shift(normalize, float64):
    x = np.random.default_rng(1).standard_normal((2, 3, 4, 5))
    axes = (3,) if normalize is layer_normalization else (0, 1, 2)
    found = normalize(keras.ops.convert_to_tensor(x, dtype=float64), None, None, EPSILON)
    assert relative_error(found, exact(x, 1.0, 0.0, axes)) < 1e-13


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only TensorFlow's kernel takes new memory")
def test_given_statistics_take_tensorflows_kernel_for_gradients_alone(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(compiler, "_has_gpu", lambda: False)
    rng = np.random.default_rng(0)
    x, variance = rng.standard_normal((2, 3, 4, 5)), rng.uniform(size=5)
    mean, gamma, beta = rng.standard_normal((3, 5))
    arrays = [array.astype("float32") for array in (x, mean, variance, gamma, beta)]
    expected = (x - mean) / np.sqrt(variance + EPSILON) * gamma + beta

    def predict(x, *others):
        return batch_normalization_by_statistics(x, *others, EPSILON)

    def differentiate(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors[0])
            y = predict(*tensors)
        return y, tape.gradient(y, tensors[0])

    signature = [tf.TensorSpec((None, *array.shape[1:]) if array.ndim > 1 else array.shape) for array in arrays]
    for function, takes_kernel in ((predict, False), (differentiate, True)):
        graph = tf.function(function).get_concrete_function(*signature)
        kinds = {node.type for node in graph.graph.get_operations()}
        assert ("FusedBatchNormV3" in kinds) == takes_kernel
        results = graph(*map(tf.constant, arrays))
        y, *gradients = results if takes_kernel else [results]
        assert relative_error(y, expected) < 1e-6
        for gradient in gradients:
            slope = gamma / np.sqrt(variance + EPSILON)
            assert relative_error(gradient, np.broadcast_to(slope, x.shape)) < 1e-6


@pytest.mark.skipif(keras.config.backend() != "jax", reason="only JAX' gradients are written out and differentiable")
@pytest.mark.parametrize(("normalize", "shape", "axes"), CASES)
def test_gradients_have_gradients(normalize, shape, axes, float64):
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(2)
    x, weights, direction = rng.standard_normal((3, *shape))
    gamma, beta = rng.standard_normal((2, shape[-1]))

    def formula(x):
        x = jax.nn.gelu(x, approximate=False) if normalize is normalization_of_gelu else x
        mean = jnp.mean(x, axes, keepdims=True)
        variance = jnp.mean((x - mean) ** 2, axes, keepdims=True)
        return (x - mean) / jnp.sqrt(variance + EPSILON) * gamma + beta

    def slope_of_gradient(function):
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(function(x)) * weights))
        return jax.grad(lambda x: jnp.sum(gradient(x) * direction))(jnp.asarray(x))

    found = slope_of_gradient(lambda x: normalize(x, jnp.asarray(gamma), jnp.asarray(beta), EPSILON))
    assert relative_error(found, slope_of_gradient(formula)) < 1e-10


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "float64"])
def test_the_layer_computes_in_its_own_dtype(policy, float64):
    layer, expected = (kind(dtype=policy) for kind in (LayerNormalization, keras.layers.LayerNormalization))
    x = np.random.default_rng(3).standard_normal((2, 3, 4)).astype("float32")
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    if policy != "float64":
        assert relative_error(y, expected(x)) < (1e-6 if policy == "float32" else 1e-2)


@pytest.mark.parametrize("shape", [(2, 3, 4, 3), (1, 5, 1, 1), (2, 1, 3, 5), (0, 2, 3, 3)])
def test_standardization_and_its_gradient(shape, float64):
    rng = np.random.default_rng(0)
    x, weights = 255 * rng.uniform(size=shape), rng.standard_normal(shape)
    mean, deviation = 255 * rng.uniform(size=shape[-1]), rng.uniform(50, 70, shape[-1])
    tensors = [keras.ops.convert_to_tensor(array, dtype=float64) for array in (x, mean, deviation)]
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(standardization(*tensors)), (x - mean) / deviation, atol=1e-14
    )
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(tensors[0]), x)
    (found,) = gradients_of(lambda x: standardization(x, *tensors[1:]), weights, [x], float64)
    np.testing.assert_allclose(found, weights / deviation, atol=1e-12)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="the others transform and trace everything alike")
def test_standardization_overwrites_nothing_under_transforms_and_exporters():
    import torch

    x = torch.from_numpy(255 * np.random.default_rng(0).uniform(size=(2, 3, 4, 3)))
    mean, deviations = torch.tensor([100.0, 120, 110]).double(), torch.tensor([[58.0, 57, 56], [1, 2, 3]]).double()
    y = torch.vmap(standardization, in_dims=(None, None, 0))(x, mean, deviations)
    torch.testing.assert_close(y, (x - mean) / deviations[:, None, None, None])

    class Module(torch.nn.Module):
        def forward(self, x):
            return standardization(x, mean, deviations[0])

    torch.testing.assert_close(torch.compile(Module(), backend="eager", fullgraph=True)(x), y[0])
    graph = torch.export.export(Module(), (x,)).graph
    assert not [node for node in graph.nodes if "div_" in str(node.target)]


@pytest.mark.parametrize("policy", ["float32", "float64"])
def test_images_are_normalized_as_by_keras(policy, float64):
    statistics = dict(mean=[123.675, 116.28, 103.53], variance=[58.395**2, 57.12**2, 57.375**2])
    x = np.random.default_rng(0).uniform(0, 255, (2, 3, 5, 3)).astype(policy)
    found, expected = (
        keras.ops.convert_to_numpy(cls(**statistics, dtype=policy)(x))
        for cls in (Normalization, keras.layers.Normalization)
    )
    assert found.dtype == policy
    assert relative_error(found, expected) < 3e-7
    exact = (np.float64(x) - statistics["mean"]) / np.sqrt(statistics["variance"])
    assert relative_error(found, exact) < (1e-15 if policy == "float64" else 2e-7)


def test_images_are_normalized_in_a_pipeline_of_tensorflow():
    """As Keras' own layer does under every backend."""
    tf = pytest.importorskip("tensorflow")
    layer = Normalization(mean=[1.0, 2.0], variance=[4.0, 9.0])
    layer.build((None, 2, 2, 2))
    images = np.random.default_rng(0).uniform(0, 255, (1, 2, 2, 2)).astype("float32")
    (found,) = tf.data.Dataset.from_tensors(images).map(layer)
    np.testing.assert_allclose(found.numpy(), (images - [1, 2]) / [2, 3], rtol=1e-6)
