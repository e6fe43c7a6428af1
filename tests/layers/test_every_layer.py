"""The contract that every public layer keeps."""

import keras
import numpy as np
import pytest
from helpers import compiled
from helpers import gradient_function
from helpers import images
from helpers import predict
from helpers import randomize
from helpers import relative_error
from helpers import to_numpy
from keras import ops

from keras_dualstream import layers

MAP, TOKENS, PIXELS, GRID = (5, 9, 8), (6, 8), (45, 8), (2, 3, 6)

# One row a layer: how to make it, most arguments away from their defaults, and the shapes of its inputs.
LAYERS = {
    "Attention": (lambda **kw: layers.Attention(2, False, 0.2, **kw), [TOKENS, PIXELS]),
    "ClassBlock": (lambda **kw: layers.ClassBlock(2, mlp_ratio=3.0, epsilon=1e-4, **kw), [MAP, TOKENS]),
    "ContextModule": (lambda **kw: layers.ContextModule(3, ("max_pool", "convolution"), **kw), [MAP]),
    "DANE": (lambda **kw: layers.DANE("reverse_dane", 2, **kw), [MAP, MAP]),
    "DFvTBlock": (lambda **kw: layers.DFvTBlock(2, 3.0, 3, 1, "sum_mul", 0.2, **kw), [MAP, MAP]),
    "CoAttention": (lambda **kw: layers.CoAttention(2, 10, 0.2, **kw), [MAP, GRID]),
    "DepthwiseConv2D": (
        lambda **kw: layers.DepthwiseConv2D((3, 5), 2, "same", activation="relu", data_format="channels_last", **kw),
        [MAP],
    ),
    "DDWConv": (lambda **kw: layers.DDWConv(3, 2, **kw), [MAP]),
    "DMixer": (
        lambda **kw: layers.DMixer(
            1, 2, 5, 3, 0.25, "dy_conv", overlapping_reduction=False, token_enhancer=False, **kw
        ),
        [MAP],
    ),
    "DSBlock": (lambda **kw: layers.DSBlock(2, 2, 2.0, 0.75, 0.2, 0.2, alignment_dim=4, **kw), [MAP]),
    "DyConv": (lambda **kw: layers.DyConv(3, 2, 3, **kw), [MAP]),
    "DropPath": (lambda **kw: layers.DropPath(0.3, seed=3, branches=2, **kw), [TOKENS]),
    "DualBlock": (
        lambda **kw: layers.DualBlock(2, 3.0, 0.2, 0.5, ("cross_attention", "self_attention"), remat=True, **kw),
        [MAP, TOKENS],
    ),
    "FeedForward": (lambda **kw: layers.FeedForward(3.0, kernel_size=5, activation="silu", **kw), [MAP]),
    "GroupNormalization": (lambda **kw: layers.GroupNormalization(1e-4, **kw), [MAP]),
    "IDConv": (lambda **kw: layers.IDConv(5, 3, 2, use_bias=False, **kw), [MAP]),
    "IntraScalePropagation": (lambda **kw: layers.IntraScalePropagation(3, 2, 0.75, **kw), [MAP]),
    "LayerScale": (lambda **kw: layers.LayerScale(0.3, use_bias=True, **kw), [MAP]),
    "MSFFN": (lambda **kw: layers.MSFFN(2.5, (1, 3, 5), **kw), [MAP]),
    "MergeBlock": (lambda **kw: layers.MergeBlock(2, 3.0, 0.2, 0.5, remat=True, **kw), [MAP, TOKENS]),
    "OSRA": (lambda **kw: layers.OSRA(2, 2, overlapping=False, **kw), [MAP]),
    "PatchEmbedding": (
        lambda **kw: layers.PatchEmbedding(
            6, 5, 3, 1e-4, "batch", True, kernel_initializer="he_normal", padding=1, activation="silu", **kw
        ),
        [MAP],
    ),
    "PositionBias": (lambda **kw: layers.PositionBias(2, 5, 4, 2, **kw), [MAP]),
    "SelfAttention": (lambda **kw: layers.SelfAttention(4, False, 0.2, **kw), [TOKENS]),
    "SemanticPathway": (
        lambda **kw: layers.SemanticPathway(2, 0.2, 0.5, ("feed_forward", "cross_attention"), 1e-4, **kw),
        [TOKENS, PIXELS],
    ),
    "SemanticTokens": (lambda **kw: layers.SemanticTokens(4, 2, 1e-4, **kw), [MAP]),
    "SpatialModule": (lambda **kw: layers.SpatialModule(**kw), [MAP]),
    "SqueezedTokenEnhancer": (lambda **kw: layers.SqueezedTokenEnhancer(2, 3, **kw), [MAP]),
    "TopDownAddition": (lambda **kw: layers.TopDownAddition(**kw), [MAP, (2, 3, 8)]),
    "TransXNetBlock": (
        lambda **kw: layers.TransXNetBlock(
            1, 2, 2.0, (3, 5), 0.2, 0.5, position_encoding=False, mixer_options={"num_groups": 3}, **kw
        ),
        [MAP],
    ),
    "WindowAttention": (lambda **kw: layers.WindowAttention(2, 3, 1, **kw), [MAP]),
}


@pytest.fixture(params=LAYERS)
def name(request):
    return request.param


def make(name, batch=2, **options):
    """The layer, built with random weights, and arrays to call it on."""
    maker, shapes = LAYERS[name]
    layer = maker(**options)
    arrays = [images(batch, *shape, seed=i) for i, shape in enumerate(shapes)]
    layer.build(*((batch, *shape) for shape in shapes))
    return randomize(layer), arrays


def flat(outputs):
    return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]


def test_every_public_layer_is_tested_here():
    assert set(LAYERS) == set(layers.__all__)


def test_config_holds_the_arguments_and_gives_an_equal_layer(name):
    # A policy as models hand it on, which is no plain value.
    layer, arrays = make(name, dtype=keras.DTypePolicy("float32"))
    config = layer.get_config()
    restored = type(layer).from_config(config)
    assert restored.get_config() == config
    restored.build(*(array.shape for array in arrays))
    restored.set_weights(layer.get_weights())
    for found, expected in zip(flat(compiled(restored)(*arrays)), flat(compiled(layer)(*arrays)), strict=True):
        np.testing.assert_array_equal(to_numpy(found), to_numpy(expected))


@pytest.mark.parametrize("batch", [1, 3])
def test_shape_is_known_before_it_is_computed(name, batch):
    layer, arrays = make(name, batch)
    shapes = layer.compute_output_shape(*(array.shape for array in arrays))
    shapes = [shapes] if isinstance(shapes[0], int) else list(shapes)
    assert shapes == [tuple(output.shape) for output in flat(compiled(layer)(*arrays))]


@pytest.mark.skipif(keras.config.backend() != "torch", reason="the tensors of the others cannot be overwritten")
def test_the_inputs_stay_as_they_were(name):
    layer, arrays = make(name)
    # No gradient is wanted then, so that activations overwrite what they are given.
    layer.trainable = False
    inputs = [ops.convert_to_tensor(array) for array in arrays]
    outputs = flat(layer(*inputs))
    before = [to_numpy(output).copy() for output in outputs]
    layer(*inputs)
    for tensor, expected in zip([*inputs, *outputs], [*arrays, *before], strict=True):
        np.testing.assert_array_equal(to_numpy(tensor), expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_works_alone_in_a_functional_model_that_saves(name, dynamic, tmp_path):
    layer, arrays = make(name)
    inputs = [keras.Input(_free(array.shape[1:]) if dynamic else array.shape[1:]) for array in arrays]
    model = keras.Model(inputs, layer(*inputs))
    expected = flat(compiled(layer)(*arrays))
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    for outputs in (model.predict(arrays, verbose=0), predict(restored, arrays)):
        for found, value in zip(flat(outputs), expected, strict=True):
            assert relative_error(found, value) < 1e-6


def _free(shape):
    return (*[None] * (len(shape) - 1), shape[-1])


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ("DropPath", "TopDownAddition")])
def test_gradients_reach_every_weight(name):
    layer, arrays = make(name)

    def loss(outputs):
        # Squared, so that no normalisation makes the sum constant; weighted, so that no symmetry hides a weight.
        return sum(ops.mean(ops.square(output) * weight) for output, weight in zip(flat(outputs), weights, strict=True))

    rng = np.random.default_rng(1)
    weights = [
        ops.convert_to_tensor(rng.random(output.shape), dtype="float32") for output in flat(compiled(layer)(*arrays))
    ]
    _, gradients = gradient_function(layer, loss)(*arrays)
    for weight, gradient in zip(layer.trainable_weights, gradients, strict=True):
        assert gradient is not None, weight.path
        assert np.abs(gradient).max() > 0, weight.path


def test_every_part_is_built(name):
    """Keras on JAX runs a model with an unbuilt part eagerly before the first step."""
    layer, _ = make(name)
    assert not [part.name for part in layer._flatten_layers() if not part.built]


def test_a_layer_made_frozen_has_no_trainable_weight(name):
    layer, _ = make(name, trainable=False)
    assert not [weight.path for weight in layer.weights if weight.trainable and "seed_generator" not in weight.path]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_computes_in_half_and_stays_close(name, policy):
    layer, arrays = make(name)
    half, _ = make(name, dtype=policy)
    half.set_weights(layer.get_weights())
    for found, expected in zip(flat(compiled(half)(*arrays)), flat(compiled(layer)(*arrays)), strict=True):
        assert keras.backend.standardize_dtype(found.dtype) == policy.removeprefix("mixed_")
        assert all(weight.dtype == "float32" for weight in half.trainable_weights)
        assert relative_error(to_numpy(ops.cast(found, "float32")), expected) < 0.02


def test_float64_stays_float64(name, float64):
    layer, arrays = make(name)
    double, _ = make(name, dtype=float64)
    double.set_weights(layer.get_weights())
    exact = flat(compiled(double)(*(ops.convert_to_tensor(array, dtype=float64) for array in arrays)))
    for found, expected in zip(exact, flat(compiled(layer)(*arrays)), strict=True):
        assert keras.backend.standardize_dtype(found.dtype) == "float64"
        assert relative_error(expected, found) < 2e-6
