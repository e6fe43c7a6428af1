"""Stochastic depth drops whole samples, seeded, and rises over the depth."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from helpers import to_numpy

from keras_dualstream.layers import DropPath
from keras_dualstream.layers.drop_path import draw_at_once
from keras_dualstream.layers.drop_path import drop_path_rates


def test_drops_whole_samples_and_scales_the_rest():
    x = np.ones((1000, 2, 3), "float32")
    y = to_numpy(DropPath(0.25, seed=1)(x, training=True)).reshape(1000, -1)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (y == y[:, :1]).all()
    assert 0.2 < (y == 0).all(axis=1).mean() < 0.3


@pytest.mark.parametrize(("rate", "training"), [(0.5, False), (0.5, None), (0.0, True)])
def test_changes_nothing_at_inference_or_at_rate_zero(rate, training):
    x = np.random.default_rng(0).random((8, 4)).astype("float32")
    np.testing.assert_array_equal(to_numpy(DropPath(rate, seed=1)(x, training=training)), x)


def test_a_seed_repeats_the_draws_and_each_call_draws_anew():
    x = np.ones((64, 1), "float32")
    first, second = DropPath(0.5, seed=5), DropPath(0.5, seed=5)
    draws = [to_numpy(first(x, training=True)) for _ in range(2)]
    np.testing.assert_array_equal(draws[0], to_numpy(second(x, training=True)))
    assert (draws[0] != draws[1]).any()


def test_keeps_the_expected_rate_in_bfloat16():
    x = np.ones((20000, 1), "float32")
    y = keras.ops.cast(DropPath(0.02, seed=1, dtype="bfloat16")(x, training=True), "float32")
    assert 0.015 < (to_numpy(y) == 0).mean() < 0.025


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2])
def test_a_rate_outside_is_refused(rate):
    with pytest.raises(ValueError, match=r"`rate` must be in \[0, 1\). Received: rate="):
        DropPath(rate)


def test_branches_are_drawn_at_once_each_for_itself():
    x = np.ones((64, 3), "float32")
    layer = DropPath(0.5, seed=1, branches=3)
    factors = [to_numpy(factor) for factor in layer.draw(x, training=True)]
    assert len(factors) == 3
    assert all(set(np.unique(factor)) == {0, 2} and factor.shape == (64,) for factor in factors)
    assert (factors[0] != factors[1]).any()
    assert (factors[1] != factors[2]).any()
    assert layer.draw(x) == [None] * 3
    assert DropPath.from_config(layer.get_config()).branches == 3


def test_a_layer_gives_what_was_drawn_elsewhere():
    layer = DropPath(0.5, seed=1)
    with layer.giving([np.array([3.0, 4.0], "float32")]):
        np.testing.assert_array_equal(to_numpy(layer(np.ones((2, 1), "float32"), training=True)), [[3], [4]])
    assert layer.draw(np.ones((2, 1), "float32")) == [None]


def test_what_a_layer_is_to_give_is_of_one_thread():
    layer = DropPath(0.5, seed=1)
    x = np.ones((64, 1), "float32")
    with layer.giving([None]), ThreadPoolExecutor(1) as other:
        assert layer.draw(x, training=True) == [None]
        (factor,) = other.submit(layer.draw, x, training=True).result()
    assert set(np.unique(to_numpy(factor))) == {0, 2}


@pytest.mark.skipif(keras.config.backend() != "jax", reason="other backends draw layer by layer")
def test_layers_that_draw_at_once_draw_what_each_would():
    x = np.ones((64, 3), "float32")
    options = [dict(rate=0.5, seed=1), dict(rate=0.0), dict(rate=0.2, seed=2, branches=3), dict(rate=0.3, branches=2)]
    options.append(dict(rate=0.4, seed=3, branches=3))
    layers, alone = ([DropPath(**{"seed": 4, **each}) for each in options] for _ in range(2))
    for _ in range(2):
        for factors, layer in zip(draw_at_once(layers, 64), alone, strict=True):
            expected = [np.ones(64)] if layer.rate == 0 else map(to_numpy, layer.draw(x, training=True))
            np.testing.assert_array_equal(list(map(to_numpy, factors)), list(expected))


@pytest.mark.skipif(keras.config.backend() != "jax", reason="other backends draw layer by layer")
def test_layers_that_never_drop_draw_nothing_at_once():
    assert draw_at_once([DropPath(0.0), DropPath(0.0, branches=2)], 64) == [[None], [None, None]]


def test_no_branch_at_all_is_refused():
    with pytest.raises(ValueError, match="`branches` must be at least 1. Received: branches=0"):
        DropPath(0.1, branches=0)


def test_rates_rise_linearly_from_zero_over_the_whole_depth():
    rates = drop_path_rates(0.6, (1, 2, 4))
    assert [len(stage) for stage in rates] == [1, 2, 4]
    np.testing.assert_allclose(sum(rates, ()), np.linspace(0, 0.6, 7))
    assert drop_path_rates(0.3, (1,)) == [(0.0,)]
