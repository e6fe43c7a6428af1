"""Dual-ViT's layers: what their arguments change, and what must stay the same."""

import keras
import numpy as np
import pytest
from helpers import gradient_function
from helpers import images
from helpers import randomize
from helpers import relative_error
from helpers import to_numpy
from keras import ops

from keras_dualstream import layers

BLOCKS = {"DualBlock": layers.DualBlock, "MergeBlock": layers.MergeBlock}


def call(block, x, z, **options):
    return [to_numpy(output) for output in block(x, z, **options)]


def inputs(batch=2):
    return images(batch, 6, 5, 8), images(batch, 4, 8, seed=1)


@pytest.mark.parametrize("name", BLOCKS)
def test_dropped_blocks_leave_the_sample_as_it_was(name):
    """At a rate near 1 almost every sample comes out as it came in, and none is mixed with another."""
    block = BLOCKS[name](2, drop_path_rate=0.999, layer_scale_init_value=0.5)
    x, z = inputs(batch=16)
    new_x, new_z = call(block, x, z, training=True)
    unchanged = (new_x == x).all(axis=(1, 2, 3)) & (new_z == z).all(axis=(1, 2))
    assert unchanged.mean() > 0.8


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_remat_changes_no_gradient(name, drop_path_rate):
    """Recomputing must drop the same samples as the first pass did."""
    x, z = inputs(batch=8)
    results = []
    for remat in (False, True):
        keras.utils.set_random_seed(3)
        block = BLOCKS[name](2, 2.0, drop_path_rate, 0.5, remat=remat)
        block(x, z)
        randomize(block)
        loss = lambda outputs: sum(ops.mean(ops.square(output)) for output in outputs)  # noqa: E731
        results.append(gradient_function(block, loss, training=True)(x, z))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for plain, recomputed in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(recomputed, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", BLOCKS)
def test_keras_remat_works_over_a_block(name):
    """A user's own layer may rematerialise a block; `fit` then learns the same as without."""

    @keras.saving.register_keras_serializable(package="tests")
    class Rematerialised(keras.layers.Layer):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def build(self, x_shape, z_shape):
            self.block.build(x_shape, z_shape)

        def call(self, x, z):
            return keras.remat(lambda x, z: self.block(x, z))(x, z)

        def compute_output_shape(self, x_shape, z_shape):
            return x_shape, z_shape

    x, z = inputs()
    losses = []
    for wrap in (lambda block: block, Rematerialised):
        keras.utils.set_random_seed(5)
        map_input, token_input = keras.Input(x.shape[1:]), keras.Input(z.shape[1:])
        outputs = wrap(BLOCKS[name](2, 2.0, layer_scale_init_value=0.5))(map_input, token_input)
        model = keras.Model([map_input, token_input], outputs)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        losses.append(model.fit([x, z], [np.zeros_like(x), np.zeros_like(z)], epochs=3, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert losses[0][-1] < losses[0][0]


def test_semantic_steps_choose_the_parts_and_their_order():
    x, z = inputs()
    steps = {
        "all": ("self_attention", "cross_attention", "feed_forward"),
        "swapped": ("cross_attention", "self_attention", "feed_forward"),
        "no self-attention": ("cross_attention", "feed_forward"),
        "no feed-forward": ("self_attention", "cross_attention"),
    }
    counts, outputs = {}, {}
    for key, semantic_steps in steps.items():
        keras.utils.set_random_seed(0)
        block = layers.DualBlock(2, 2.0, 0.0, 0.5, semantic_steps)
        block(x, z)
        randomize(block)
        counts[key], outputs[key] = block.count_params(), call(block, x, z)[1]
    # A norm and γ each, and three channels·channels projections or two of ratio 4.
    assert counts["all"] - counts["no self-attention"] == 3 * 8 + 3 * (8 * 8 + 8)
    assert counts["all"] - counts["no feed-forward"] == 3 * 8 + (8 * 32 + 32) + (32 * 8 + 8)
    assert counts["all"] == counts["swapped"]
    assert relative_error(outputs["swapped"], outputs["all"]) > 0.01


@pytest.mark.parametrize("steps", [("attention",), ("feed_forward", "feed_forward")])
def test_unknown_or_repeated_steps_are_refused(steps):
    with pytest.raises(ValueError, match="`steps` must name each of .* at most once. Received: steps="):
        layers.SemanticPathway(2, steps=steps)


def test_one_semantic_token_for_each_pooling_window():
    x = images(2, 15, 22, 8)
    assert tuple(layers.SemanticTokens()(x).shape) == (2, 2 * 3, 8)
    assert tuple(layers.SemanticTokens(pool_size=5)(x).shape) == (2, 3 * 4, 8)


def test_pixels_beyond_the_last_pooling_window_do_not_count():
    tokens = layers.SemanticTokens()
    x = images(1, 15, 22, 8)
    changed = x.copy()
    changed[:, 14:], changed[:, :, 21:] = 9, 9
    np.testing.assert_array_equal(to_numpy(tokens(x)), to_numpy(tokens(changed)))


def test_a_map_smaller_than_the_pooling_window_is_refused():
    with pytest.raises(ValueError, match="at least 7x7 to be pooled into semantic tokens .* Received: 6x9"):
        layers.SemanticTokens()(images(1, 6, 9, 8))


def test_class_block_does_not_depend_on_the_order_of_the_tokens():
    block = layers.ClassBlock(2)
    x, z = inputs()
    turned = block(x[:, ::-1], z[:, ::-1])
    assert relative_error(turned, block(x, z)) < 1e-6


def test_merge_block_takes_any_number_of_semantic_tokens():
    x, z = keras.Input((4, 5, 8)), keras.Input((None, 8))
    model = keras.Model([x, z], layers.MergeBlock(2)(x, z))
    found = model.predict([images(2, 4, 5, 8), images(2, 3, 8)], verbose=0)
    assert [output.shape for output in found] == [(2, 4, 5, 8), (2, 3, 8)]
