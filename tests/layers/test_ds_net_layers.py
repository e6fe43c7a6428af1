"""DS-Net's layers: what they compute, what their arguments change, and what must stay the same."""

import keras
import numpy as np
import pytest
from helpers import compiled
from helpers import gradient_function
from helpers import images
from helpers import randomize
from helpers import relative_error
from helpers import to_numpy
from keras import ops

from keras_dualstream import layers
from keras_dualstream.ops import position_bias
from keras_dualstream.ops.depthwise import depthwise_conv2d

CHANNELS = 16


def built(layer, *shapes):
    layer.build(*(shapes or ((None, 8, 10, CHANNELS),)))
    return randomize(layer)


def parameters(layer):
    return sum(int(np.prod(weight.shape)) for weight in layer.trainable_weights)


def attend(query, key, value, num_heads):
    """Attention of one sample's tokens, head by head."""
    heads = []
    for q, k, v in zip(*(np.split(tokens, num_heads, axis=-1) for tokens in (query, key, value)), strict=True):
        scores = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
        heads.append(scores / scores.sum(axis=-1, keepdims=True) @ v)
    return np.concatenate(heads, axis=-1)


def project(layer, x):
    return x @ to_numpy(layer.kernel) + to_numpy(layer.bias)


def normalized(layer, x, mean, variance):
    return (x - mean) / np.sqrt(variance + 1e-5) * to_numpy(layer.gamma) + to_numpy(layer.beta)


@pytest.mark.parametrize("scores_per_piece", [2**24, 24])
def test_co_attention_equals_its_definition(scores_per_piece, monkeypatch):
    """Both directions read what came in; with few scores a piece both go through in pieces."""
    monkeypatch.setattr(position_bias, "SCORES_PER_PIECE", scores_per_piece)
    fine, coarse = images(1, 4, 5, 6), images(1, 2, 3, 10, seed=1)
    layer = built(layers.CoAttention(2, 8), fine.shape, coarse.shape)
    found = compiled(layer)(fine, coarse)

    local, coarse_tokens = fine.reshape(20, 6).astype("float64"), coarse.reshape(6, 10).astype("float64")
    norm = layer.local_norm
    n = normalized(norm, local, to_numpy(norm.moving_mean), to_numpy(norm.moving_variance))
    local_query, local_key, local_value = np.split(project(layer.local_projection, n), 3, axis=-1)
    n = normalized(
        layer.global_norm, coarse_tokens, coarse_tokens.mean(-1, keepdims=True), coarse_tokens.var(-1, keepdims=True)
    )
    global_query, global_key, global_value = np.split(project(layer.global_projection, n), 3, axis=-1)
    expected_local = local + project(layer.local_output, attend(local_query, global_key, global_value, 2))
    expected_global = coarse_tokens + project(layer.global_output, attend(global_query, local_key, local_value, 2))
    assert relative_error(found[0], expected_local.reshape(fine.shape)) < 1e-6
    assert relative_error(found[1], expected_global.reshape(coarse.shape)) < 1e-6


@pytest.mark.parametrize(("closed", "unchanged"), [("global_to_local", 0), ("local_to_global", 1)])
def test_one_way_alignment_leaves_one_stream_as_it_was_and_has_no_silent_weight(closed, unchanged):
    inputs = images(2, 4, 5, 6), images(2, 2, 3, 6, seed=1)
    shapes = [x.shape for x in inputs]
    layer = built(layers.CoAttention(2, attention_dropout_rate=0.0, **{closed: False}), *shapes)
    found = compiled(layer)(*inputs)
    np.testing.assert_array_equal(to_numpy(found[unchanged]), inputs[unchanged])
    assert relative_error(found[1 - unchanged], inputs[1 - unchanged]) > 0.05
    # Of 6 projections the three of the open direction are left, and one of the two outputs.
    both = built(layers.CoAttention(2), *shapes)
    assert parameters(both) - parameters(layer) == 3 * (6 * 6 + 6) + (6 * 6 + 6)
    _, gradients = gradient_function(layer, lambda streams: ops.sum(ops.square(streams[1 - unchanged])))(*inputs)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)


def test_alignment_of_a_large_map_has_no_score_between_its_positions():
    """The scores between 65,536 positions would take 17 GB."""
    fine, coarse = images(1, 256, 256, 4), images(1, 7, 7, 4)
    layer = built(layers.CoAttention(1), fine.shape, coarse.shape)
    assert compiled(layer)(fine, coarse)[0].shape == fine.shape


@pytest.mark.parametrize("name", ["CoAttention", "IntraScalePropagation"])
def test_attention_weights_are_dropped_in_training_only(name):
    inputs = (images(2, 4, 6, 8), images(2, 2, 3, 8)) if name == "CoAttention" else (images(2, 4, 6, 8),)
    differences = []
    for rate in (0.0, 0.5):
        layer = built(getattr(layers, name)(2, attention_dropout_rate=rate), *(x.shape for x in inputs))
        # Frozen, so that nothing but dropout differs between training and inference.
        layer.trainable = False
        known, trained = (compiled(layer, training=training)(*inputs) for training in (False, True))
        differences += [relative_error(found, expected) for found, expected in zip(trained, known, strict=True)]
    # Only the global stream of the propagation has attention.
    assert max(differences[:2]) < 1e-6
    assert differences[3] > 0.01
    assert (differences[2] > 0.01) == (name == "CoAttention")


@pytest.mark.parametrize(("height", "width", "grid"), [(8, 10, (2, 3)), (7, 11, (2, 3)), (2, 5, (1, 1))])
def test_the_first_channels_become_the_grid_of_the_global_stream(height, width, grid):
    layer = built(layers.IntraScalePropagation(1, 3, 0.25, local_convolution=False, global_attention=False))
    x = images(1, height, width, CHANNELS)
    local, coarse = compiled(layer)(x)
    np.testing.assert_array_equal(to_numpy(local), x[..., 4:])
    assert coarse.shape == (1, *grid, 4)
    import torch

    resized = torch.nn.functional.interpolate(torch.tensor(x[..., :4].transpose(0, 3, 1, 2)), grid, mode="bilinear")
    assert relative_error(coarse, resized.permute(0, 2, 3, 1).numpy()) < 1e-6


def block_parameters(local=8, alignment=8):
    """Trainable parameters of `DSBlock(2, 2, 2.0, ...)` on 16 channels, counted by hand."""
    c, coarse = CHANNELS, CHANNELS - local
    linears = 2 * (c * c + c) + c * 2 * c + 2 * c + 2 * c * c + c
    streams = 2 * local + 9 * local + local + 2 * coarse + 3 * coarse * coarse + 3 * coarse
    aligned = 2 * c + 3 * alignment * (c + 2) + alignment * c + c if alignment else 0
    return 9 * c + c + 4 * c + linears + streams + aligned


WHOLE = block_parameters()

# Tables 2 and 3 of the paper: the option, and the parameters that a block on 16 channels then has.
ABLATIONS = {
    "no local convolution": (dict(local_convolution=False), WHOLE - (2 * 8 + 9 * 8 + 8)),
    "no global attention": (dict(global_attention=False), WHOLE - (2 * 8 + 3 * 8 * 8 + 3 * 8)),
    "no global to local": (dict(global_to_local=False), WHOLE - 4 * (8 * 8 + 8)),
    "no local to global": (dict(local_to_global=False), WHOLE - 4 * (8 * 8 + 8)),
    "neither": (dict(global_to_local=False, local_to_global=False), block_parameters(alignment=0)),
    "without alignment": (dict(inter_scale_alignment=False), block_parameters(alignment=0)),
    "local alone": (dict(inter_scale_alignment=False, global_ratio=0), block_parameters(local=16, alignment=0)),
    "quarter": (dict(global_ratio=0.25), block_parameters(local=12, alignment=4)),
    "global alone": (dict(inter_scale_alignment=False, global_ratio=1.0), block_parameters(local=0, alignment=0)),
    "narrow alignment": (dict(alignment_dim=6), block_parameters(alignment=6)),
}


def test_every_ablation_has_exactly_the_layers_it_needs_and_trains():
    """One model of all of them side by side, for JAX compiles each for seconds."""
    assert parameters(built(layers.DSBlock(2, 2, 2.0))) == WHOLE
    inputs = keras.Input((7, 6, CHANNELS))
    blocks = [
        layers.DSBlock(2, 2, 2.0, attention_dropout_rate=0.0, name=name.replace(" ", "_"), **options)
        for name, (options, _) in ABLATIONS.items()
    ]
    model = keras.Model(inputs, [block(inputs) for block in blocks])
    for block, (_, expected) in zip(blocks, ABLATIONS.values(), strict=True):
        randomize(block)
        assert parameters(block) == expected, block.name
    target = ops.convert_to_tensor(images(2, 7, 6, CHANNELS, seed=1))
    step = gradient_function(
        model, lambda outputs: sum(ops.mean(ops.square(output - target)) for output in outputs), training=True
    )
    x, losses = images(2, 7, 6, CHANNELS), []
    for _ in range(3):
        loss, gradients = step(x)
        losses.append(loss)
        for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
            assert np.abs(gradient).max() > 0, weight.path
            weight.assign(to_numpy(weight) - 0.002 * gradient)
    assert losses[2] < losses[1] < losses[0]


def test_dropped_branches_leave_the_sample_with_its_position_encoding():
    """At a rate near 1 almost every sample loses both branches, and none is mixed with another."""
    block = built(layers.DSBlock(2, 2, 2.0, drop_path_rate=0.999))
    x = images(16, 4, 6, CHANNELS)
    position = block.position
    expected = x + to_numpy(depthwise_conv2d(x, position.kernel, padding="same", bias=position.bias))
    found = to_numpy(compiled(block, training=True)(x))
    assert (np.abs(found - expected) < 1e-6).all(axis=(1, 2, 3)).mean() > 0.8


MISTAKES = {
    "heads": (lambda: built(layers.DSBlock(3)), "`num_heads` must divide the channels.* num_heads=3, channels=8"),
    "no head": (lambda: layers.IntraScalePropagation(0), "must be at least 1. Received: num_heads=0, global_stride=1"),
    "stride": (lambda: layers.DSBlock(1, 0), "`num_heads` and `global_stride` must be at least 1. Received"),
    "ratio": (lambda: layers.DSBlock(global_ratio=1.5), r"`global_ratio` must be in \[0, 1\]. Received: .*=1.5"),
    "one stream": (
        lambda: layers.DSBlock(global_ratio=1),
        "`global_ratio` must be between 0 and 1, or `inter_scale_alignment` be False.* Received: global_ratio=1",
    ),
    "rounded away": (
        lambda: built(layers.DSBlock(global_ratio=0.99)),
        "`global_ratio` must leave both streams a channel.* Received: global_ratio=0.99, channels=16",
    ),
    "dropout": (
        lambda: layers.DSBlock(attention_dropout_rate=-0.1),
        r"`attention_dropout_rate` must be in \[0, 1\). Received: attention_dropout_rate=-0.1",
    ),
    "no direction": (
        lambda: layers.CoAttention(local_to_global=False, global_to_local=False),
        "`local_to_global` or `global_to_local` must be True. Received",
    ),
    "alignment heads": (lambda: layers.CoAttention(0), "`num_heads` must be at least 1. Received: num_heads=0"),
    "alignment dim": (
        lambda: layers.CoAttention(2, 5),
        "`alignment_dim` must be positive and a multiple of `num_heads`, or None. Received: alignment_dim=5",
    ),
    "uneven streams": (
        lambda: built(layers.CoAttention(4), (1, 4, 4, 12), (1, 2, 2, 6)),
        "`num_heads` must divide the fewer .* Received: num_heads=4, 12 local and 6 global channels",
    ),
    "padding": (lambda: layers.PatchEmbedding(8, padding=-1), "`padding` must be .* or None. Received: padding=-1"),
    "small map": (
        lambda: layers.PatchEmbedding(8, 4, 4, padding=0)(images(1, 3, 9, 3)),
        "must be at least 4x4 to be cut into patches of 4x4. Received: 3x9",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    make, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        make()
