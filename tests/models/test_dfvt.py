"""DFvT as a model: the paper's ablations, what padding may change, the checkpoint's derived tensors."""

import keras
import numpy as np
import pytest
from helpers import TINY_DFVT
from helpers import compiled
from helpers import gradient_function
from helpers import images
from helpers import one_backend
from helpers import predict
from helpers import randomize
from helpers import read_manifest
from helpers import relative_error
from helpers import tiny_dfvt
from helpers import to_numpy

import keras_dualstream
from keras_dualstream.conversion import load_checkpoint
from keras_dualstream.conversion import to_torch_state_dict
from keras_dualstream.layers import context_module
from keras_dualstream.ops import windows

# Million parameters of DFvT-S in the paper's Table 5 and its ablations.
ABLATIONS = {
    "dane": (dict(), 11.2),
    "sum": (dict(fusion="sum"), 11.1),
    "sum and product": (dict(fusion="sum_mul"), 11.1),
    "se": (dict(fusion="se"), 11.2),
    "spatial": (dict(fusion="spatial"), 11.2),
    "reverse dane": (dict(fusion="reverse_dane"), 11.2),
    "without max-pool": (dict(context_branches=("convolution",)), 11.2),
    "without the convolution branch": (dict(context_branches=("max_pool",)), 9.6),
    "without spatial module": (dict(spatial_module=False), 10.4),
    "without spatial module and fusion": (dict(spatial_module=False, fusion=None), 10.3),
}


@one_backend
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_an_ablation_has_the_parameters_of_the_paper(ablation):
    options, millions = ABLATIONS[ablation]
    model = keras_dualstream.DFvTS(**options)
    assert round(sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) / 1e6, 1) == millions
    restored = type(model).from_config(model.get_config())
    assert restored.get_config() == model.get_config()
    assert [weight.path for weight in restored.weights] == [weight.path for weight in model.weights]


@one_backend
@pytest.mark.parametrize("ablation", [name for name in ABLATIONS if name != "dane"])
def test_an_ablation_has_no_checkpoint(ablation):
    options, _ = ABLATIONS[ablation]
    with pytest.raises(ValueError, match="Checkpoints have DANE, the spatial module and both branches"):
        to_torch_state_dict(tiny_dfvt(**options))


OPTIONS = {
    "embed_dim": 64,
    "depths": (1, 1, 1, 1),
    "mlp_ratio": 3.0,
    "window_size": 3,
}


@one_backend
@pytest.mark.parametrize("option", OPTIONS)
def test_every_other_option_changes_the_weights(option):
    changed = tiny_dfvt(**{option: OPTIONS[option]})
    assert changed.count_params() != tiny_dfvt().count_params()
    assert type(changed).from_config(changed.get_config()).count_params() == changed.count_params()


def test_the_rate_of_stochastic_depth_rises_to_the_last_block():
    model = tiny_dfvt(drop_path_rate=0.5)
    blocks = [layer for layer in model.layers if hasattr(layer, "drop_path_rate")]
    np.testing.assert_allclose([block.drop_path_rate for block in blocks], np.linspace(0, 0.5, 6))


def test_every_second_block_shifts():
    shifts = [layer.shift_size for layer in tiny_dfvt(window_size=7).layers if hasattr(layer, "shift_size")]
    assert shifts == [0, 3, 0, 0, 3, 0]


class Rubbish:
    """`keras.ops`, but what fills windows up is no zero; only the map of ones that marks the padding stays true."""

    def __init__(self):
        self.calls = 0

    def __getattr__(self, name):
        return getattr(keras.ops, name)

    def pad(self, x, widths):
        self.calls += 1
        return keras.ops.pad(x, widths, constant_values=0.0 if x.shape[-1] == 1 else 1e3)


def test_what_the_padding_holds_changes_nothing(monkeypatch):
    # Without the spatial module, whose space to depth pads odd maps by definition.
    model = randomize(tiny_dfvt((33, 42, 3), window_size=3, spatial_module=False, classifier_activation=None))
    x, rubbish = images(2, 33, 42, 3), Rubbish()
    expected = to_numpy(compiled(model)(x))
    monkeypatch.setattr(windows, "ops", rubbish)
    assert relative_error(compiled(model)(x), expected) < 1e-6
    assert rubbish.calls


def test_an_image_in_the_corner_of_a_larger_one_gives_the_same_where_it_must():
    """As long as nothing averages the whole map, and where neither convolutions nor windows reach the image's end."""
    options = {**TINY_DFVT, "depths": (2, 1, 1, 1), "window_size": 7, "fusion": "sum", "include_preprocessing": False}
    small = randomize(keras_dualstream.DFvTT(include_top=False, input_shape=(224, 224, 3), **options))
    large = keras_dualstream.DFvTT(include_top=False, input_shape=(250, 300, 3), **options)
    large.set_weights(small.get_weights())
    x = images(1, 250, 300, 3)
    found, expected = (
        to_numpy(compiled(keras.Model(model.input, model.pyramid_outputs["P3"]))(images))
        for model, images in ((small, x[:, :224, :224]), (large, x))
    )
    # Of 28 rows, shifted windows end at the 17th and at the 24th, whose window sees the end. The larger
    # map of 32 x 38 is padded to 35 x 42.
    assert found.shape == (1, 28, 28, 48)
    np.testing.assert_allclose(found[:, :17, :17], expected[:, :17, :17], atol=1e-5)
    assert np.abs(found[:, 27] - expected[:, 27, :28]).max() > 1e-2


def test_without_the_spatial_module_details_are_averaged():
    model = randomize(tiny_dfvt((36, 52, 3), spatial_module=False, context_branches=("max_pool",)))
    outputs = [model.get_layer(name).output for name in ("stem_embedding2", "stage1_spatial_average")]
    x, average = (to_numpy(y) for y in compiled(keras.Model(model.input, outputs))(255 * images(1, 36, 52, 3)))
    assert x.shape[1:3] == (9, 13)
    blocks = [x[:, i : i + 2, j : j + 2].mean(axis=(1, 2)) for i in range(0, 9, 2) for j in range(0, 13, 2)]
    np.testing.assert_allclose(average.reshape(1, 35, -1), np.stack(blocks, axis=1), rtol=1e-4, atol=1e-5)


def test_the_smallest_ablation_trains():
    """Without convolutions, spatial modules and fusion."""
    options = dict(spatial_module=False, context_branches=("max_pool",), fusion=None, depths=(1, 1, 1, 1))
    model = randomize(tiny_dfvt((64, 64, 3), classifier_activation=None, **options))
    target = keras.ops.convert_to_tensor(images(4, 5, seed=1))
    step = gradient_function(model, lambda y: keras.ops.mean(keras.ops.square(y - target)), training=True)
    x, losses = 255 * images(4, 64, 64, 3), []
    for _ in range(3):
        loss, gradients = step(x)
        losses.append(loss)
        for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
            weight.assign(to_numpy(weight) - 1e-3 * gradient)
    assert losses[2] < losses[1] < losses[0]
    assert not [layer.name for layer in model.layers if "spatial" in layer.name]


def test_max_pool_equals_one_that_pads_with_minus_infinity():
    layer = context_module.ContextModule(branches=("max_pool",))
    for size in ((5, 8), (1, 3)):
        x = images(2, *size, 4) - 5
        padded = np.pad(x, [(0, 0), (1, 2), (1, 2), (0, 0)], constant_values=-np.inf)
        rows, columns = (-(-side // 2) for side in size)
        expected = np.max(
            [padded[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2] for i in range(3) for j in range(3)], axis=0
        )
        np.testing.assert_array_equal(to_numpy(layer(x)[0]), expected)


def test_a_checkpoint_has_the_tables_that_its_sizes_give():
    """By the names that the reference lists; those of DFvT-B at 224 are where windows shift."""
    model = keras_dualstream.DFvTB()
    manifest = read_manifest("dfvt_b")
    state_dict = to_torch_state_dict(model)
    assert set(state_dict) == {*manifest["tensors"], *manifest["structural_buffers"]}
    index = state_dict["layers.0.blocks.1.attn.relative_position_index"]
    assert (index.shape, index.dtype, index[0, 0], index[0, -1], index[-1, 0]) == ((49, 49), "int64", 84, 0, 168)
    mask = state_dict["layers.0.blocks.1.attn_mask"]
    assert mask.shape == (16, 49, 49)
    assert set(np.unique(mask)) == {-100, 0}
    # The first window lies inside; of the last, 4 x 4 positions come from the end of the map and see their like.
    assert [np.count_nonzero(window == 0) for window in mask[[0, 3, -1]]] == [
        49**2,
        28**2 + 21**2,
        16**2 + 2 * 12**2 + 9**2,
    ]
    load_checkpoint(model, state_dict)


def test_tables_of_smaller_windows_go_into_the_middle():
    """The original code makes them where maps are smaller than the window."""
    model = randomize(tiny_dfvt((32, 32, 3), window_size=7, classifier_activation=None))
    full = to_torch_state_dict(model)
    small = dict(full)
    for stage, window in enumerate((4, 2, 1, 1)):
        for name in [name for name in full if name.startswith(f"layers.{stage}") and name.endswith("bias_table")]:
            table = full[name].reshape(13, 13, -1)[7 - window : 6 + window, 7 - window : 6 + window]
            small[name] = table.reshape((2 * window - 1) ** 2, -1)
    loaded, x = tiny_dfvt((32, 32, 3), window_size=7, classifier_activation=None), images(2, 32, 32, 3)
    with pytest.warns(UserWarning, match="tables of smaller windows lie in the middle of the model's: layers.0"):
        load_checkpoint(loaded, small)
    np.testing.assert_array_equal(predict(loaded, x), predict(model, x))


MISTAKES = {
    "stages": (dict(depths=(2, 2)), r"`depths` must have one value for each of the 4 stages. Received: \(2, 2\)"),
    "width": (dict(embed_dim=1), "`embed_dim` must be at least 2. Received: embed_dim=1"),
    "fusion": (dict(fusion="mean"), "`fusion` must be one of .*'sum_mul'.* Received: fusion='mean'"),
    "unread": (dict(fusion=None), "`fusion=None` needs `spatial_module=False`. Received: fusion=None"),
    "branches": (dict(context_branches=()), r"`context_branches` must be .* Received: context_branches=\(\)"),
    "heads": (dict(num_heads=(5, 2, 4, 4)), "`num_heads` must divide the channels of the input. Received: num_heads=5"),
    "window": (
        dict(window_size=0),
        "`num_heads` and `window_size` must be int and at least 1. Received: .*window_size=0",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    options, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        tiny_dfvt(**options)
