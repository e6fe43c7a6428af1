"""TransXNet's layers: what their arguments change, and what must stay the same."""

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


def built(layer, shape=(None, 8, 10, CHANNELS)):
    layer.build(shape)
    return randomize(layer)


def test_id_conv_gives_every_sample_its_own_kernel():
    """A sample's output does not depend on the batch it is in, and is no fixed convolution of it."""
    layer = built(layers.IDConv(5, 3))
    x = images(3, 8, 10, CHANNELS)
    together = to_numpy(compiled(layer)(x))
    alone = np.concatenate([to_numpy(compiled(layer)(x[i : i + 1])) for i in range(3)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert relative_error(compiled(layer)(2 * x), 2 * together) > 0.05


def test_id_conv_updates_its_statistics_twice_a_step():
    layer = built(layers.IDConv(3))
    before = to_numpy(layer.norm.moving_mean).copy()
    x = images(4, 9, 9, CHANNELS)
    layer(x, training=True)
    pooled = x.reshape(4, 3, 3, 3, 3, CHANNELS).mean(axis=(2, 4))
    once = 0.9 * before + 0.1 * (pooled @ to_numpy(layer.squeeze.kernel)).mean(axis=(0, 1, 2))
    twice = 0.9 * once + 0.1 * (x.mean(axis=(1, 2)) @ to_numpy(layer.squeeze.kernel)).mean(axis=0)
    np.testing.assert_allclose(to_numpy(layer.norm.moving_mean), twice, rtol=1e-4, atol=1e-5)


def test_id_conv_without_bias_is_a_convolution_alone():
    layer = built(layers.IDConv(3, use_bias=False))
    assert len(layer.trainable_weights) == len(built(layers.IDConv(3)).trainable_weights) - 1
    np.testing.assert_array_equal(to_numpy(compiled(layer)(np.zeros((1, 8, 10, CHANNELS), "float32"))), 0)


# Each option of D-Mixer and the weights it has more than the published one with 16 channels.
MIXERS = {
    "depthwise_conv": dict(local_operator="depthwise_conv"),
    "window_attention": dict(local_operator="window_attention"),
    "dy_conv": dict(local_operator="dy_conv"),
    "d_dw_conv": dict(local_operator="d_dw_conv"),
    "quarter": dict(attention_ratio=0.25),
    "three quarters": dict(attention_ratio=0.75),
    "attention alone": dict(attention_ratio=1),
    "non-overlapping": dict(overlapping_reduction=False),
    "1x1 convolution": dict(token_enhancer=False),
}


def mixer_parameters(local=8 * 2 * 9 + 8 * 2 + (8 * 2 + 2 * 2 + 2 * 16 + 16), attention=8, reduction=25, fusion=None):
    """Trainable parameters of `DMixer(2, 2, kernel_size=3)` on 16 channels, counted by hand."""
    c = attention
    linear = c * c + c + 2 * c * c + 2 * c
    depthwise = c * reduction + 2 * c + c + 2 * c + 9 * c + c
    fusion = 9 * 16 + 16 + 32 + 16 * 16 + 16 + 32 + 16 * 16 + 16 + 32 if fusion is None else fusion
    return local + linear + depthwise + fusion


MIXER_PARAMETERS = {
    "depthwise_conv": mixer_parameters(local=9 * 8 + 8),
    "window_attention": mixer_parameters(local=25 * 2 + 8 * 24 + 24 + 8 * 8 + 8),
    "dy_conv": mixer_parameters(local=2 * 9 * 8 + 8 * 2 + 2 * 2 + 2 * 2 + 2),
    "d_dw_conv": mixer_parameters(local=8 * 2 + 2 * 2 + 2 * 72 + 72),
    "quarter": mixer_parameters(local=12 * 2 * 9 + 12 * 2 + 12 * 3 + 2 * 3 + 3 * 24 + 24, attention=4),
    "three quarters": mixer_parameters(local=4 * 2 * 9 + 4 * 2 + 4 * 1 + 2 * 1 + 1 * 8 + 8, attention=12),
    "attention alone": mixer_parameters(local=0, attention=16),
    "non-overlapping": mixer_parameters(reduction=4),
    "1x1 convolution": mixer_parameters(fusion=16 * 16 + 16),
}


def parameters(layer):
    return sum(int(np.prod(weight.shape)) for weight in layer.trainable_weights)


@pytest.mark.parametrize("name", MIXERS)
def test_every_option_of_the_mixer_has_its_parameters_and_trains(name):
    layer = built(layers.DMixer(2, 2, kernel_size=3, **MIXERS[name]))
    assert parameters(layer) == MIXER_PARAMETERS[name]
    x = images(2, 7, 6, CHANNELS)
    target = ops.convert_to_tensor(images(2, 7, 6, CHANNELS, seed=1))
    step = gradient_function(layer, lambda y: ops.mean(ops.square(y - target)), training=True)
    losses = []
    for _ in range(3):
        loss, gradients = step(x)
        losses.append(loss)
        for weight, gradient in zip(layer.trainable_weights, gradients, strict=True):
            assert np.abs(gradient).max() > 0, weight.path
            weight.assign(to_numpy(weight) - 0.002 * gradient)
    assert losses[2] < losses[1] < losses[0]


def test_the_published_mixer_has_its_parameters():
    assert parameters(built(layers.DMixer(2, 2, kernel_size=3))) == mixer_parameters()


@pytest.mark.parametrize("scales", [(3,), (1, 3), (1, 3, 5), (1, 3, 5, 7), (1, 3, 5, 7, 9)])
def test_every_choice_of_scales_has_its_parameters(scales):
    layer = built(layers.MSFFN(2.0, scales))
    part, rest = divmod(32, len(scales))
    parts = [part + rest] + [part] * (len(scales) - 1)
    depthwise = sum(channels * (size**2 + 1) for channels, size in zip(parts, scales, strict=True))
    assert parameters(layer) == 2 * 16 * 32 + depthwise + 2 * (32 + 32 + 16)
    assert compiled(layer)(images(1, 8, 10, CHANNELS)).shape == (1, 8, 10, CHANNELS)


def convolved(layer, x):
    return to_numpy(depthwise_conv2d(x, layer.kernel, padding="same", bias=layer.bias))


def test_a_block_adds_its_position_encoding():
    block = built(layers.TransXNetBlock(2, 2, 2.0))
    for scale in (block.scale1, block.scale2):
        scale.set_weights([np.zeros(CHANNELS)] * 2)
    x = images(2, 8, 10, CHANNELS)
    assert relative_error(compiled(block)(x), x + convolved(block.encoding, x)) < 1e-6


def test_keys_and_values_are_of_a_map_and_its_local_refinement():
    """The values of one position are what its attention gives."""
    layer = built(layers.OSRA(2, 1))
    x = images(2, 1, 1, CHANNELS)
    y = x + convolved(layer.local, x)
    value = (y @ to_numpy(layer.key_value.kernel) + to_numpy(layer.key_value.bias))[..., CHANNELS:]
    assert relative_error(compiled(layer)(x), value) < 1e-5


@pytest.mark.skipif(keras.config.backend() != "jax", reason="the others convolve part by part")
def test_parts_are_convolved_at_once(monkeypatch):
    layer = built(layers.MSFFN(2.0, (1, 3)))
    monkeypatch.setattr(layers.DepthwiseConv2D, "call", lambda *_, **__: pytest.fail("A part is convolved alone."))
    layer(images(1, 8, 10, CHANNELS))


@pytest.mark.parametrize("change", ["activation", "call"])
def test_what_a_user_changes_in_a_part_counts(change):
    layer, x = built(layers.MSFFN(2.0, (1, 3))), images(1, 8, 10, CHANNELS)
    before = to_numpy(layer(x))
    part = layer.depthwise[1]
    if change == "activation":
        part.activation = keras.activations.relu
    else:
        call = part.call
        part.call = lambda *args, **kwargs: 2 * call(*args, **kwargs)
    assert relative_error(layer(x), before) > 1e-4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dilation_rate", (2, 2)),
        ("residual", True),
        ("convolve", lambda inputs, kernel, bias: 2 * inputs),
    ],
)
def test_how_a_user_has_a_part_convolve_counts(name, value):
    layer, x = built(layers.MSFFN(2.0, (1, 3))), images(1, 8, 10, 2 * CHANNELS)
    part = layer.depthwise[1]
    setattr(part, name, value)
    expected = x[..., CHANNELS:] + to_numpy(part(x[..., CHANNELS:]))
    found = layer._with_neighbours(keras.ops.convert_to_tensor(x))
    assert relative_error(to_numpy(found)[..., CHANNELS:], expected) < 1e-6


def test_blocks_without_position_encoding_have_no_weights_for_it():
    with_encoding, without = (
        built(layers.TransXNetBlock(2, 2, 2.0, position_encoding=encoding)) for encoding in (True, False)
    )
    assert parameters(with_encoding) - parameters(without) == 50 * CHANNELS


def attention_by_torch(query, key, value, num_heads, table):
    """The published code's way: all scores at once, the bias resized as an image."""
    import torch

    def heads(tokens):
        return torch.tensor(tokens).reshape(*tokens.shape[:2], num_heads, -1).transpose(1, 2)

    query, key, value = heads(query), heads(key), heads(value)
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    bias = torch.nn.functional.interpolate(torch.tensor(table), size=scores.shape[2:], mode="bicubic")
    tokens = (scores + bias).softmax(dim=-1) @ value
    return tokens.transpose(1, 2).flatten(2).numpy()


@pytest.mark.parametrize("scores_per_piece", [2**24, 40])
@pytest.mark.parametrize("table_shape", [(12, 6), (20, 6), (9, 4), (31, 11)])
def test_position_bias_is_resized_like_an_image_in_pieces_or_whole(scores_per_piece, table_shape, monkeypatch):
    monkeypatch.setattr(position_bias, "SCORES_PER_PIECE", scores_per_piece)
    arrays = [images(2, count, 8, seed=i) for i, count in enumerate((20, 6, 6))]
    table = images(1, 2, *table_shape, seed=3)
    found = position_bias.position_biased_attention(
        *(ops.convert_to_tensor(array) for array in arrays), num_heads=2, table=ops.convert_to_tensor(table)
    )
    assert relative_error(found, attention_by_torch(*arrays, 2, table)) < 2e-6


@pytest.mark.parametrize("biased", [False, True])
def test_gradients_are_the_same_in_pieces(biased, monkeypatch):
    x = images(2, 6, 5, 8)
    results = []
    for scores_per_piece in (2**24, 40):
        monkeypatch.setattr(position_bias, "SCORES_PER_PIECE", scores_per_piece)
        inputs = keras.Input((6, 5, 8))
        bias = (layers.PositionBias(2, 4, 7, 2, name="bias")(inputs),) if biased else ()
        model = randomize(keras.Model(inputs, layers.OSRA(2, 2, name="osra")(inputs, *bias)))
        results.append(gradient_function(model, lambda y: ops.mean(ops.square(y)), training=True)(x))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for whole, pieces in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(pieces, whole, rtol=2e-4, atol=1e-7)


MISTAKES = {
    "even kernel": (lambda: layers.IDConv(4), "`kernel_size` must be odd and positive. Received: kernel_size=4"),
    "no group": (lambda: layers.IDConv(num_groups=0), "`num_groups` and `reduction_ratio` must be at least 1"),
    "dy kernel": (lambda: layers.DyConv(2), "`kernel_size` must be odd and positive, `reduction_ratio` at least 1"),
    "dy groups": (lambda: layers.DyConv(num_groups=0), "`num_groups` must be at least 1. Received: num_groups=0"),
    "heads": (
        lambda: built(layers.OSRA(3)),
        "`num_heads` must divide the channels of the input. Received: num_heads=3",
    ),
    "reduction": (lambda: layers.OSRA(sr_ratio=0), "`num_heads` and `sr_ratio` must be at least 1"),
    "bias heads": (
        lambda: layers.OSRA(2).build((None, 4, 4, 16), (1, 4, 16, 16)),
        r"`position_bias` must have 2 heads. Received: shape \(1, 4, 16, 16\)",
    ),
    "bias size": (lambda: layers.PositionBias(1, 0, 4), "`height`, `width` and `sr_ratio` must be positive. Received"),
    "operator": (lambda: layers.DMixer(local_operator="conv"), "`local_operator` must be one of .* Received: .*'conv'"),
    "ratio": (lambda: layers.DMixer(attention_ratio=0), r"`attention_ratio` must be in \(0, 1\]. Received: "),
    "rounded ratio": (
        lambda: built(layers.DMixer(attention_ratio=0.01)),
        "`attention_ratio` must leave each branch a channel. Received: attention_ratio=0.01, channels=16",
    ),
    "scales": (
        lambda: layers.MSFFN(scales=(1, 2)),
        r"`scales` must be odd positive kernel sizes. Received: scales=\(1, 2\)",
    ),
    "few channels": (
        lambda: built(layers.MSFFN(0.1)),
        "`mlp_ratio` must give at least one hidden channel for each of the 4 scales. Received: mlp_ratio=0.1",
    ),
    "waist": (lambda: layers.SqueezedTokenEnhancer(0), "`reduction_ratio` and `minimum_channels` must be at least 1"),
    "window": (lambda: layers.WindowAttention(2, 0), "`num_heads` and `window_size` must be int and at least 1"),
    "window heads": (lambda: built(layers.WindowAttention(3)), "`num_heads` must divide the channels"),
    "norm": (
        lambda: layers.PatchEmbedding(8, normalization="group"),
        "`normalization` must be 'layer', 'batch' or None. Received: normalization='group'",
    ),
    "padding": (
        lambda: layers.DepthwiseConv2D(3, padding=-1),
        "`padding` must be 'valid', 'same', an int.* Received: ",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    make, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("sr_ratio", [2, 3, 5])
def test_the_reduced_map_has_the_keys_of_the_position_bias(sr_ratio):
    x = images(1, 10, 13, CHANNELS)
    attention = built(layers.OSRA(2, sr_ratio), x.shape)
    reduced = attention.reduce.compute_output_shape(x.shape)
    bias = layers.PositionBias(2, 10, 13, sr_ratio)
    assert bias.compute_output_shape(x.shape)[-1] == reduced[1] * reduced[2]
