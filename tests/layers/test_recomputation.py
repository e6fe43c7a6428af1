"""What a training step on TensorFlow computes again."""

import keras
import numpy as np
import pytest
from helpers import images
from helpers import randomize
from helpers import relative_error

from keras_dualstream.layers import MSFFN
from keras_dualstream.layers import SqueezedTokenEnhancer
from keras_dualstream.layers import feed_forward
from keras_dualstream.layers import normalized_gelu
from keras_dualstream.layers.feed_forward import FeedForward

pytestmark = pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="Only TensorFlow computes them again.")

X = images(3, 5, 4, 6)


def built(layer):
    layer.build((None, 5, 4, 6))
    return randomize(layer)


def step(layer, x):
    import tensorflow as tf

    weights = [variable.value for variable in layer.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(tf.sin(layer(x, training=True)))
    return tape.gradient(loss, [x, *weights])


def in_graph(function):
    import tensorflow as tf

    return tf.function(function, autograph=False)


@pytest.mark.parametrize(
    ("make", "reader"),
    [
        (lambda dtype: MSFFN(2.0, (1, 3), dtype=dtype), "_with_neighbours"),
        (lambda dtype: MSFFN(2.0, (1, 3), dtype=dtype), "reduce"),
        (lambda dtype: SqueezedTokenEnhancer(2, 3, dtype=dtype), "squeeze"),
        (lambda dtype: SqueezedTokenEnhancer(2, 3, dtype=dtype), "expand"),
        (lambda dtype: FeedForward(2.0, dtype=dtype), "reduce"),
        (lambda dtype: FeedForward(2.0, 3, dtype=dtype), "reduce"),
    ],
)
def test_gradients_are_those_of_what_is_kept(make, reader, monkeypatch, float64):
    import tensorflow as tf

    layer = built(make(float64))
    called = []
    target, name = (layer, reader) if reader.startswith("_") else (getattr(layer, reader), "call")
    call = getattr(target, name)
    monkeypatch.setattr(target, name, lambda *args, **kwargs: (called.append(1), call(*args, **kwargs))[1])

    def gradients():
        called.clear()
        return in_graph(step)(layer, tf.constant(X.astype(float64))), len(called)

    recomputed, twice = gradients()
    for module in (normalized_gelu, feed_forward):
        monkeypatch.setattr(module, "recomputes", lambda *_: False)
    kept, once = gradients()
    assert (twice, once) == (2, 1)
    for found, expected in zip(recomputed, kept, strict=True):
        assert relative_error(found, expected) < 1e-12


def test_running_statistics_take_one_share_of_a_batch():
    layer = built(MSFFN(2.0, (1, 3)))
    before = np.array(layer.norm1.moving_mean)
    in_graph(step)(layer, keras.ops.convert_to_tensor(X))
    batch = keras.ops.mean(keras.ops.gelu(layer.expand(X), approximate=False), axis=(0, 1, 2))
    np.testing.assert_allclose(layer.norm1.moving_mean, 0.9 * before + 0.1 * np.array(batch), rtol=1e-5)


def with_an_activation_that_draws():
    return built(FeedForward(2.0, activation=keras.layers.Dropout(0.5, seed=1)))


def with_a_loss():
    layer = built(FeedForward(2.0))
    layer.reduce.activity_regularizer = keras.regularizers.L2(0.1)
    return layer


def in_half_precision():
    return built(FeedForward(2.0, dtype="mixed_bfloat16"))


@pytest.mark.parametrize("make", [with_an_activation_that_draws, with_a_loss, in_half_precision])
def test_what_does_more_than_compute_is_called_once(make, monkeypatch):
    layer = make()
    monkeypatch.setattr(feed_forward, "recomputed", lambda *_: pytest.fail("It is computed again."))
    in_graph(lambda x: layer(x, training=True))(X)


def test_operations_called_one_by_one_keep_what_they_give(monkeypatch):
    monkeypatch.setattr(feed_forward, "recomputed", lambda *_: pytest.fail("It is computed again."))
    built(FeedForward(2.0))(X, training=True)


def test_an_activation_with_weights_learns():
    model = keras.Sequential([keras.Input((5, 4, 6)), FeedForward(2.0, activation=keras.layers.PReLU())])
    model.compile("sgd", "mse")
    model.train_on_batch(X, X)
    assert np.any(np.array(model.layers[0].activation.alpha) != 0)
