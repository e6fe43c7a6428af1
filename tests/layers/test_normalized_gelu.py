"""A GELU, the normalisation behind it and what reads that are what they are one after the other, whatever the mode."""

import contextlib

import keras
import numpy as np
import pytest
from helpers import images
from helpers import randomize
from helpers import relative_error
from helpers import to_numpy
from helpers import without_gradients
from keras import ops

from keras_dualstream.layers import MSFFN
from keras_dualstream.layers.float64 import BatchNormalization
from keras_dualstream.layers.float64 import Dense
from keras_dualstream.layers.normalized_gelu import from_normalized_gelu
from keras_dualstream.ops.activation import gelu

TOLERANCES = {"float32": 1e-6, "mixed_bfloat16": 0, "float64": 1e-14}


@pytest.mark.parametrize("mode", [contextlib.nullcontext, without_gradients])
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("policy", TOLERANCES)
def test_values_and_statistics(policy, training, trainable, mode, float64):
    rng = np.random.default_rng(4)
    arrays = rng.uniform(0.5, 2, (4, 5))
    joined, apart = (BatchNormalization(trainable=trainable, dtype=policy) for _ in range(2))
    for norm in (joined, apart):
        norm.build((None, 3, 4, 5))
        for weight, array in zip((norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance), arrays, strict=True):
            weight.assign(array)
    # As NumPy: what is given may be overwritten.
    x = rng.standard_normal((2, 3, 4, 5))

    def tensor():
        return ops.convert_to_tensor(x, dtype=joined.compute_dtype)

    reader = Dense(3, dtype=policy)
    reader.build((None, 3, 4, 5))
    randomize(reader)
    with mode():
        found = from_normalized_gelu(reader, [reader], joined, tensor(), training)
    expected = reader(apart(gelu(tensor()), training=training))
    assert keras.backend.standardize_dtype(found.dtype) == joined.compute_dtype
    assert relative_error(found, expected) <= TOLERANCES[policy]
    for ours, other in zip(joined.weights, apart.weights, strict=True):
        assert relative_error(ours, other) <= TOLERANCES[policy]


@pytest.mark.skipif(keras.config.backend() != "jax", reason="only there both are one function")
def test_a_training_step_on_jax_keeps_one_map():
    import jax

    norm = BatchNormalization()
    norm.build((None, 3, 4, 5))
    _, gradient = jax.vjp(lambda x: from_normalized_gelu(lambda y: y, [], norm, x, training=True), images(2, 3, 4, 5))
    assert [leaf.size for leaf in jax.tree.leaves(gradient)].count(2 * 3 * 4 * 5) == 1


@pytest.mark.skipif(keras.config.backend() != "jax", reason="TensorFlow knows its own operations")
def test_tensorflow_runs_a_training_pass_that_jax_exported(tmp_path):
    import tensorflow as tf

    layer = MSFFN(1.0, (1,))
    layer.build((None, 3, 4, 5))
    randomize(layer)
    x = images(2, 3, 4, 5)
    archive = keras.export.ExportArchive()
    archive.track(layer)
    signature = [keras.InputSpec("float32", shape=(None, 3, 4, 5))]
    archive.add_endpoint("train", lambda x: layer(x, training=True), signature)
    archive.write_out(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "model")
    found = loaded.train(x)
    assert relative_error(np.asarray(found), layer(x, training=True)) < 1e-5


@pytest.mark.skipif(keras.config.backend() != "torch", reason="hooks are PyTorch's")
@pytest.mark.parametrize("part", ["expand", "norm1", "depthwise", "norm2", "reduce", "norm3"])
def test_a_hook_keeps_what_a_layer_was_given_and_gave(part):
    layer = MSFFN(2.0, (1, 3))
    layer.build((None, 3, 4, 6))
    randomize(layer)
    watched = layer.depthwise[1] if part == "depthwise" else getattr(layer, part)
    x = images(2, 3, 4, 6)
    expected = to_numpy(layer(x))
    kept = []
    watched.register_forward_hook(lambda module, given, result: kept.extend((given[0], result)))
    with without_gradients():
        found = layer(x)
        given, result = kept
        assert relative_error(found, expected) < 1e-6
        assert relative_error(watched(given), result) < 1e-6


def test_a_normalisation_overwrites_only_where_it_may():
    norm = BatchNormalization()
    norm.build((None, 3, 4, 6))
    randomize(norm)
    x = images(2, 3, 4, 6)
    expected = to_numpy(norm(x))
    for overwrite in (False, True):
        for mode in (contextlib.nullcontext, without_gradients):
            given = ops.convert_to_tensor(x.copy())
            with mode():
                found = norm(given, overwrite=overwrite)
            overwritten = overwrite and mode is without_gradients and keras.config.backend() == "torch"
            assert relative_error(found, expected) < 1e-6
            np.testing.assert_array_equal(to_numpy(given), to_numpy(found) if overwritten else x)


def test_activity_regularizers_of_layers_inside_count():
    layer = MSFFN(2.0, (1, 3))
    layer.build((None, 3, 4, 6))
    for inner in (layer.norm1, layer.depthwise[1], layer.norm3):
        inner.activity_regularizer = keras.regularizers.L2(1.0)
    layer(images(2, 3, 4, 6), training=False)
    assert len(layer.losses) == 3
