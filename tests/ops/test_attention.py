"""Multi-head attention is softmax(q kᵀ / √d) v, head by head."""

import keras
import numpy as np
import pytest
from helpers import central_differences
from helpers import gradients_of
from helpers import relative_error
from helpers import to_numpy
from keras import ops

from keras_dualstream.ops.attention import multi_head_attention


def attention_by_loop(query, key, value, num_heads):
    outputs = []
    for q, k, v in zip(*(np.split(tokens, num_heads, axis=-1) for tokens in (query, key, value)), strict=True):
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        outputs.append(weights / weights.sum(-1, keepdims=True) @ v)
    return np.concatenate(outputs, axis=-1)


@pytest.mark.parametrize(("queries", "keys", "num_heads"), [(7, 11, 1), (1, 5, 2), (9, 1, 4)])
def test_equals_the_loop_over_heads(queries, keys, num_heads):
    rng = np.random.default_rng(0)
    query = rng.standard_normal((2, queries, 8)).astype("float32")
    key, value = rng.standard_normal((2, 2, keys, 8)).astype("float32")
    found = multi_head_attention(query, key, value, num_heads)
    assert relative_error(found, attention_by_loop(query, key, value, num_heads)) < 5e-7


@pytest.mark.parametrize("bias_shape", [None, (1, 2, 5, 7), (3, 1, 1, 7), (2, 5, 7)])
def test_gradients_equal_differences(bias_shape, float64):
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal(shape) for shape in ((3, 5, 4), (3, 7, 4), (3, 7, 4))]
    arrays += [] if bias_shape is None else [rng.standard_normal(bias_shape)]
    weights = rng.standard_normal((3, 5, 4))

    def total(query, key, value, bias=0.0):
        q, k, v = (tokens.reshape(3, -1, 2, 2).transpose(0, 2, 1, 3) for tokens in (query, key, value))
        exponentials = np.exp(q @ k.transpose(0, 1, 3, 2) / np.sqrt(2) + bias)
        outputs = exponentials / exponentials.sum(-1, keepdims=True) @ v
        return (outputs.transpose(0, 2, 1, 3).reshape(3, 5, 4) * weights).sum()

    def attend(query, key, value, *bias):
        return multi_head_attention(query, key, value, 2, *bias)

    gradients = gradients_of(attend, weights, arrays, float64)
    for position, found in enumerate(gradients):
        assert relative_error(found, central_differences(total, arrays, position)) < 1e-8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropout_drops_weights_and_scales_the_others(dtype):
    """Equal scores and one value per key show every weight."""
    query, value = np.zeros((4, 32, 64)), np.broadcast_to(64 * np.eye(64), (4, 64, 64))
    arguments = [ops.convert_to_tensor(x, dtype=dtype) for x in (query, np.zeros_like(value), value)]
    dropout = keras.layers.Dropout(0.25, seed=1)
    found = multi_head_attention(*arguments, num_heads=1, dropout=lambda weights: dropout(weights, training=True))
    weights = to_numpy(ops.cast(found, "float32"))
    dropped = weights == 0
    assert abs(dropped.mean() - 0.25) < 0.02
    np.testing.assert_allclose(weights[~dropped], 4 / 3, rtol=1e-6 if dtype == "float32" else 4e-3)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="the other backends compile no draws")
def test_weights_reach_the_dropout_in_one_row():
    """XLA writes the short axes of a draw out, to be compiled."""
    given = []
    query, key, value = (np.random.default_rng(0).random((2, tokens, 8)).astype("float32") for tokens in (7, 5, 5))
    found = multi_head_attention(query, key, value, 4, dropout=lambda weights: given.append(weights.shape) or weights)
    assert [tuple(shape) for shape in given] == [(2 * 4 * 7 * 5,)]
    assert relative_error(found, attention_by_loop(query, key, value, 4)) < 5e-7


def test_keeps_float64(float64):
    query, key, value = np.random.default_rng(0).standard_normal((3, 2, 6, 8))
    found = multi_head_attention(*(ops.convert_to_tensor(x) for x in (query, key, value)), num_heads=2)
    assert relative_error(found, attention_by_loop(query, key, value, 2)) < 1e-14


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_large_scores_do_not_overflow_half_precision(dtype):
    """Scores of ±2^15 leave float16's range once summed; the softmax must still give the larger value."""
    query = np.full((1, 1, 4), 128.0)
    key = np.stack([np.full(4, 128.0), np.full(4, -128.0)])[None]
    value = np.stack([np.full(4, 1.0), np.full(4, -1.0)])[None]
    found = multi_head_attention(*(ops.convert_to_tensor(x, dtype=dtype) for x in (query, key, value)), num_heads=1)
    np.testing.assert_array_equal(to_numpy(ops.cast(found, "float32")), np.ones((1, 1, 4)))


@pytest.mark.skipif(keras.config.backend() != "jax", reason="only Keras on JAX tries cuDNN's kernel")
@pytest.mark.parametrize(("tokens", "fused"), [((4, 6), None), ((4, 7), False), ((3, 6), False)])
def test_no_fused_kernel_without_a_gradient_is_tried(tokens, fused, monkeypatch):
    """cuDNN's raises for odd numbers of tokens, and Keras logs that for every layer."""
    asked = []
    original = ops.dot_product_attention

    def recorded(*args, flash_attention=None, **kwargs):
        asked.append(flash_attention)
        return original(*args, flash_attention=flash_attention, **kwargs)

    monkeypatch.setattr(ops, "dot_product_attention", recorded)
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((2, tokens[i], 8)).astype("float32") for i in (0, 1, 1))
    found = multi_head_attention(*(ops.cast(x, "bfloat16") for x in (query, key, value)), num_heads=2)
    assert asked == [fused]
    assert relative_error(ops.cast(found, "float32"), attention_by_loop(query, key, value, 2)) < 1e-2
