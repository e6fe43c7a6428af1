"""In pieces, a function gives what it gives at once, and so do its gradients."""

import functools
import gc
import weakref

import keras
import numpy as np
import pytest
from helpers import to_numpy

from keras_dualstream.layers.feed_forward import FeedForward
from keras_dualstream.layers.ms_ffn import MSFFN
from keras_dualstream.ops import attention
from keras_dualstream.ops import pieces
from keras_dualstream.ops.attention import multi_head_attention

pytestmark = pytest.mark.skipif(keras.config.backend() != "jax", reason="only JAX computes in pieces")


def value_and_gradients(function, *arrays):
    """The compiled function and the gradients of its weighted sum; anew, since the limits are read while tracing."""
    import jax
    import jax.numpy as jnp

    weights = np.random.default_rng(9).standard_normal(jax.eval_shape(function, *arrays).shape).astype("float32")

    def total(*arrays):
        y = function(*arrays)
        return jnp.sum(y * weights), y

    run = jax.jit(jax.grad(total, argnums=tuple(range(len(arrays))), has_aux=True))
    return jax.tree.map(np.asarray, run(*arrays))


def has_loop(function, *arrays):
    import jax

    return "scan[" in str(jax.make_jaxpr(lambda *arrays: function(*arrays))(*arrays))


SAMPLE = 5 * 7 * 8


@pytest.mark.parametrize(("of_class", "options"), [(FeedForward, {"kernel_size": 3}), (MSFFN, {"scales": (1, 3)})])
@pytest.mark.parametrize(("batch", "piece"), [(2, SAMPLE), (3, SAMPLE), (6, 2 * SAMPLE)])
def test_feed_forward(of_class, options, batch, piece, monkeypatch):
    layer = of_class(2.0, **options)
    x = np.random.default_rng(0).standard_normal((batch, 5, 7, 4)).astype("float32")
    layer.build(x.shape)
    count = len(layer.trainable_variables)

    def forward(x, *weights):
        return layer.stateless_call(weights[:count], weights[count:], x)[0]

    arrays = (x, *map(to_numpy, [*layer.trainable_variables, *layer.non_trainable_variables]))
    at_once = value_and_gradients(forward, *arrays)
    assert not has_loop(forward, *arrays)
    monkeypatch.setattr(pieces, "PIECE", piece)
    assert has_loop(forward, *arrays)
    in_pieces = value_and_gradients(forward, *arrays)
    for found, expected in zip(in_pieces[0], at_once[0], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(in_pieces[1], at_once[1], rtol=1e-6, atol=1e-6)


def test_a_feed_forward_that_normalizes_by_the_batch_trains_at_once(monkeypatch):
    layer = MSFFN(2.0, scales=(1, 3))
    x = np.random.default_rng(0).standard_normal((2, 5, 7, 4)).astype("float32")
    layer.build(x.shape)
    monkeypatch.setattr(pieces, "PIECE", SAMPLE)
    assert has_loop(functools.partial(layer, training=False), x)
    assert not has_loop(functools.partial(layer, training=True), x)


@pytest.mark.parametrize(
    ("of_class", "options", "regularizer"),
    [
        (FeedForward, {"activation": keras.layers.Dropout(0.5)}, None),
        (FeedForward, {}, keras.regularizers.L2(1.0)),
        (MSFFN, {}, keras.regularizers.L2(1.0)),
    ],
)
def test_a_feed_forward_whose_parts_draw_or_add_losses_goes_at_once(of_class, options, regularizer, monkeypatch):
    """What a loop of JAX notes cannot leave it."""
    layer = of_class(2.0, **options)
    x = np.random.default_rng(0).standard_normal((2, 5, 7, 4)).astype("float32")
    layer.build(x.shape)
    layer.reduce.activity_regularizer = regularizer
    monkeypatch.setattr(pieces, "PIECE", SAMPLE)
    assert not has_loop(layer, x)


@pytest.mark.parametrize("bias_shape", [None, (1, 2, 5, 7), (4, 1, 1, 7)])
def test_attention(bias_shape, monkeypatch):
    rng = np.random.default_rng(1)
    shapes = [(4, 5, 6), (4, 7, 6), (4, 7, 6)] + ([] if bias_shape is None else [bias_shape])
    arrays = [rng.standard_normal(shape).astype("float32") for shape in shapes]
    attend = functools.partial(multi_head_attention, num_heads=2)

    def forward(query, key, value, bias=None):
        return attend(query, key, value, bias=bias)

    at_once = value_and_gradients(forward, *arrays)
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", 0)
    monkeypatch.setattr(pieces, "PIECE", 2 * 5 * 7)
    # A bias per sample goes along with no piece.
    assert has_loop(forward, *arrays) == (bias_shape is None or bias_shape[0] == 1)
    in_pieces = value_and_gradients(forward, *arrays)
    for found, expected in zip((*in_pieces[0], in_pieces[1]), (*at_once[0], at_once[1]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_called_without_a_trace_nothing_is_compiled_as_a_loop(monkeypatch):
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", 0)
    monkeypatch.setattr(pieces, "PIECE", 1)
    calls = []
    monkeypatch.setattr("jax.lax.fori_loop", lambda *args: calls.append(args))
    multi_head_attention(*np.ones((3, 2, 5, 4), "float32"), num_heads=2)
    assert not calls


def test_a_batch_that_only_single_samples_share_evenly_stays_whole(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 20 * SAMPLE)
    found = []
    for batch in (31, 32):
        x = np.ones((batch, SAMPLE), "float32")
        found.append(has_loop(lambda x: pieces.in_pieces(lambda x: x + 1, x.shape, x), x))
    assert found == [False, True]


def test_layers_that_went_in_pieces_can_go(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", SAMPLE)
    layer = FeedForward(2.0, kernel_size=3)
    layer.build((2, 5, 7, 4))
    arrays = (np.ones((2, 5, 7, 4), "float32"), *(to_numpy(weight) for weight in layer.weights))

    def forward(x, *weights, layer=layer):
        return layer.stateless_call(weights, [], x)[0]

    value_and_gradients(forward, *arrays)
    gone = weakref.ref(layer)
    del layer, forward
    gc.collect()
    assert gone() is None
