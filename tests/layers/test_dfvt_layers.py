"""DFvT's layers against their equations, and every option of them trained."""

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

CHANNELS = 32
MAP = (2, 5, 6, CHANNELS)


def built(layer, inputs=1):
    layer.build(*[MAP] * inputs)
    return randomize(layer)


def normalized(layer, x):
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    return x * to_numpy(layer.gamma) + to_numpy(layer.beta)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def channel_logits(dane, x):
    hidden = x @ to_numpy(dane.squeeze.kernel)
    hidden = normalized(dane.squeeze_norm, hidden * sigmoid(hidden))
    return hidden @ to_numpy((dane.position if dane.fusion == "spatial" else dane.expand).kernel)


def position_logits(dane, x):
    return normalized(dane.position_norm, x) @ to_numpy(dane.position.kernel)


def average(x):
    return x.mean(axis=(1, 2), keepdims=True)


# The mask's logits from the layer, the context and the spatial features.
MASKS = {
    "dane": lambda dane, t, s: position_logits(dane, s) + channel_logits(dane, average(t)),
    "reverse_dane": lambda dane, t, s: position_logits(dane, t) + channel_logits(dane, average(s)),
    "se": lambda dane, t, s: channel_logits(dane, average(t)),
    "spatial": lambda dane, t, s: channel_logits(dane, s),
}


@pytest.mark.parametrize("method", MASKS)
def test_dane_equals_its_equation(method):
    dane = built(layers.DANE(method, 4), 2)
    t, s = images(*MAP, seed=1), images(*MAP, seed=2)
    mask = sigmoid(MASKS[method](dane, t, s))
    assert relative_error(compiled(dane)(t, s), s * mask + t * (1 - mask)) < 1e-6


# Trainable parameters of the fusion of 32 channels over 2 hidden ones.
FUSIONS = {
    "dane": 3 * 32 + 2 * 64 + 4,
    "reverse_dane": 3 * 32 + 2 * 64 + 4,
    "se": 2 * 64 + 4,
    "spatial": 64 + 4 + 2,
    "sum": 0,
    "sum_mul": 0,
    None: 0,
}


def trains(layer, *arrays):
    """Whether gradient steps lower a loss and reach every weight."""
    target = ops.convert_to_tensor(images(*compiled(layer)(*arrays).shape, seed=5))
    step = gradient_function(layer, lambda y: ops.mean(ops.square(y - target)), training=True)
    losses = []
    for _ in range(3):
        loss, gradients = step(*arrays)
        losses.append(loss)
        for weight, gradient in zip(layer.trainable_weights, gradients, strict=True):
            assert np.abs(gradient).max() > 1e-6, weight.path
            weight.assign(to_numpy(weight) - 0.01 * gradient)
    return losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_of_a_block_has_its_parameters_and_trains(fusion):
    block = layers.DFvTBlock(2, 2.0, 3, 1, fusion)
    block = built(block, 1 if fusion is None else 2)
    rest = 4 * 32 + 25 * 2 + 32 * 96 + 96 + 32 * 32 + 32 + 2 * 32 * 64 + 64 + 32
    assert sum(int(np.prod(weight.shape)) for weight in block.trainable_weights) == rest + FUSIONS[fusion]
    assert trains(block, *(images(*MAP, seed=seed) for seed in ((1,) if fusion is None else (1, 2))))


@pytest.mark.parametrize("fusion", ["sum", "sum_mul", None])
def test_a_block_adds_attention_fuses_and_adds_its_network(fusion):
    block = built(layers.DFvTBlock(2, 2.0, 3, 1, fusion), 2)
    t, s = images(*MAP, seed=1), images(*MAP, seed=2)
    x = t + to_numpy(compiled(block.attention)(normalized(block.norm1, t).astype("float32")))
    x = {"sum": x + s, "sum_mul": x + s + x * s, None: x}[fusion]
    y = x + to_numpy(compiled(block.feed_forward)(normalized(block.norm2, x).astype("float32")))
    assert relative_error(compiled(block)(t, s), y) < 1e-6


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("branches", [("max_pool", "convolution"), ("max_pool",), ("convolution",)])
def test_the_context_is_the_sum_of_its_branches(branches, strides):
    module = built(layers.ContextModule(strides, branches[::-1]))
    both = built(layers.ContextModule(strides))
    x = images(*MAP)
    context, details = (to_numpy(y) for y in compiled(module)(x))
    pooled, _ = compiled(built(layers.ContextModule(strides, ("max_pool",))))(x)
    if strides == 1:
        np.testing.assert_array_equal(to_numpy(pooled), x)
    total, inner = (to_numpy(y) for y in compiled(both)(x))
    terms = {"max_pool": to_numpy(pooled), "convolution": total - to_numpy(pooled)}
    np.testing.assert_allclose(context, sum(terms[branch] for branch in branches), atol=1e-5)
    np.testing.assert_array_equal(details, inner if "convolution" in branches else x)
    if branches == ("convolution",):
        assert trains(keras.Sequential([keras.Input(MAP[1:]), FirstOutput(module)]), x)


class FirstOutput(keras.layers.Layer):
    """The context alone, whose gradients reach every weight of the module."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def call(self, x, training=None):
        return self.module(x, training=training)[0]


def test_the_spatial_module_lays_blocks_side_by_side_column_by_column():
    module = built(layers.SpatialModule())
    x = images(2, 5, 4, CHANNELS)
    padded = np.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)])
    blocks = padded.reshape(2, 3, 2, 2, 2, CHANNELS).transpose(0, 1, 3, 4, 2, 5).reshape(2, 3, 2, 4 * CHANNELS)
    y = to_numpy(compiled(module.neighbours_norm)(compiled(module.neighbours)(blocks)))
    y = to_numpy(compiled(module.norm)((y @ to_numpy(module.reduce.kernel)).astype("float32")))
    assert relative_error(compiled(module)(x), y) < 1e-6


MISTAKES = {
    "fusion of DANE": (lambda: layers.DANE("sum"), "`fusion` must be one of .*'reverse_dane'.* Received: fusion='sum'"),
    "ratio": (lambda: layers.DANE(reduction_ratio=0), "`reduction_ratio` must be at least 1. Received: .*=0"),
    "no spatial": (
        lambda: layers.DFvTBlock(2).build(MAP),
        r"`spatial` must have the shape of `context`. Received: spatial of shape None, context of shape \(2, 5, 6,",
    ),
    "another spatial": (
        lambda: layers.DANE().build(MAP, (2, 1, 1, 32)),
        r"`spatial` must have the shape of `context`. Received: spatial of shape \(2, 1, 1, 32\)",
    ),
    "no hidden channel": (
        lambda: layers.FeedForward(0.01).build(MAP),
        "`mlp_ratio` must give at least one hidden channel. Received: mlp_ratio=0.01, channels=32",
    ),
    "strides": (lambda: layers.ContextModule(0), "`strides` must be at least 1. Received: strides=0"),
    "branches": (lambda: layers.ContextModule(branches="max_pool"), "`branches` must be .* Received: .*'max_pool'"),
    "fusion": (lambda: layers.DFvTBlock(2, fusion="DANE"), "`fusion` must be one of .* Received: fusion='DANE'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    make, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("normalization", ["layer", "batch", None])
def test_an_embedding_activates_what_it_normalised(normalization):
    plain, active = (
        layers.PatchEmbedding(6, normalization=normalization, activation=activation) for activation in (None, "silu")
    )
    x = images(2, 7, 10, 3)
    plain.build(x.shape)
    active.build(x.shape)
    active.set_weights(randomize(plain).get_weights())
    y = to_numpy(plain(x, training=False))
    np.testing.assert_allclose(to_numpy(active(x, training=False)), y / (1 + np.exp(-y)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["relu", None, "silu"])
def test_an_embedding_keeps_its_activation(activation):
    layer = layers.PatchEmbedding(6, activation=activation)
    restored = layers.PatchEmbedding.from_config(layer.get_config())
    assert restored.activation is layer.activation


@pytest.mark.skipif(keras.config.backend() != "torch", reason="hooks are PyTorch's")
@pytest.mark.parametrize(
    ("normalization", "watched"), [("layer", "norm"), ("batch", "norm"), ("batch", "projection"), (None, "projection")]
)
def test_an_activation_leaves_what_a_hook_keeps(normalization, watched):
    layer = layers.PatchEmbedding(6, normalization=normalization, activation="silu")
    layer.build((2, 7, 10, 3))
    layer.trainable = False
    kept = []
    getattr(layer, watched).register_forward_hook(lambda layer, arguments, y: kept.append((y, y.clone())))
    layer(images(2, 7, 10, 3))
    np.testing.assert_array_equal(*(to_numpy(y) for y in kept[0]))
