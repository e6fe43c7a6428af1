"""PyTorch's names and shapes to this package's weights and back, whole or not at all."""

import keras
import numpy as np
import pytest
from helpers import randomize
from helpers import read_manifest
from helpers import tiny_model
from helpers import to_numpy
from reference_weights import make_state_dict

import keras_dualstream
from keras_dualstream.conversion import load_checkpoint
from keras_dualstream.conversion import to_torch_state_dict


def values(model):
    return [to_numpy(weight) for weight in model.weights]


def assert_unchanged(model, before):
    for value, expected in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.fixture
def model():
    return randomize(tiny_model(), seed=1)


@pytest.fixture
def state_dict():
    return to_torch_state_dict(randomize(tiny_model(), seed=2))


@pytest.mark.parametrize(
    ("builder", "variant", "token_label_head"),
    [
        ("DualViTS", "dualvit_s", True),
        ("DualViTS", "dualvit_s_no_token_label", False),
        pytest.param("DualViTB", "dualvit_b", True, marks=pytest.mark.slow),
        pytest.param("DualViTL", "dualvit_l", True, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_comes_back_bit_for_bit(builder, variant, token_label_head):
    state_dict = make_state_dict(read_manifest(variant), "round trip")
    model = getattr(keras_dualstream, builder)(token_label_head=token_label_head, input_shape=(32, 32, 3))
    load_checkpoint(model, state_dict)
    found = to_torch_state_dict(model)
    assert found.keys() == state_dict.keys()
    for name, array in state_dict.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_every_weight_is_assigned(model, state_dict):
    load_checkpoint(model, state_dict)
    for value, expected in zip(values(model), values(randomize(tiny_model(), seed=2)), strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    "options",
    [dict(semantic_steps=("cross_attention",)), dict(data_format="channels_first", input_shape=(1, 32, 40))],
)
def test_other_configurations_convert_too(options):
    source = randomize(tiny_model(**options), seed=3)
    target = tiny_model(**options)
    load_checkpoint(target, to_torch_state_dict(source))
    assert_unchanged(target, values(source))


def test_a_backbone_takes_its_part_of_a_whole_checkpoint(state_dict):
    backbone = tiny_model().backbone
    load_checkpoint(backbone, state_dict)
    assert_unchanged(backbone, values(randomize(tiny_model(), seed=2).backbone))
    assert set(to_torch_state_dict(backbone)) < set(state_dict)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_tensors_of_other_precisions_are_taken(model, state_dict, dtype):
    load_checkpoint(model, {name: array.astype(dtype) for name, array in state_dict.items()})
    for name, array in to_torch_state_dict(model).items():
        np.testing.assert_array_equal(array, state_dict[name].astype(dtype).astype(array.dtype))


def test_pytorch_tensors_are_taken(model, state_dict):
    import torch

    load_checkpoint(model, {name: torch.tensor(array) for name, array in state_dict.items()})
    found = to_torch_state_dict(model)
    assert all((found[name] == array).all() for name, array in state_dict.items())


def test_bfloat16_pytorch_tensors_are_taken(model, state_dict):
    import torch

    load_checkpoint(model, {name: torch.tensor(array).to(torch.bfloat16) for name, array in state_dict.items()})
    found = to_torch_state_dict(model)
    expected = torch.tensor(state_dict["head.weight"]).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(found["head.weight"], expected)


def test_missing_tensors_are_named_and_nothing_changes(model, state_dict):
    before = values(model)
    del state_dict["block3.1.attn.q.weight"], state_dict["norm4.bias"]
    with pytest.raises(ValueError, match="missing in the checkpoint: block3.1.attn.q.weight, norm4.bias"):
        load_checkpoint(model, state_dict)
    assert_unchanged(model, before)


def test_left_over_tensors_are_named_and_nothing_changes(model, state_dict):
    before = values(model)
    state_dict["block5.0.norm1.weight"] = np.ones(3)
    with pytest.raises(ValueError, match="in the checkpoint but not in the model: block5.0.norm1.weight"):
        load_checkpoint(model, state_dict)
    assert_unchanged(model, before)


def test_wrong_shapes_are_named_and_nothing_changes(model, state_dict):
    before = values(model)
    state_dict["head.weight"] = state_dict["head.weight"].T
    with pytest.raises(ValueError, match=r"of the wrong shape: head.weight \(32, 5\) instead of \(5, 32\)"):
        load_checkpoint(model, state_dict)
    assert_unchanged(model, before)


@pytest.mark.parametrize("array", [np.array(["x"] * 32), np.zeros(32, dtype=[("a", "f4")])])
def test_an_array_that_holds_no_numbers_changes_nothing(array, model, state_dict):
    before = values(model)
    state_dict["norm4.bias"] = array
    with pytest.raises(ValueError, match="'norm4.bias' must be numeric"):
        load_checkpoint(model, state_dict)
    assert_unchanged(model, before)


def test_a_token_label_checkpoint_wants_its_head(state_dict):
    with pytest.raises(ValueError, match="aux_head.*build the model with `token_label_head=True`"):
        load_checkpoint(tiny_model(token_label_head=False), state_dict)


def test_other_variants_and_things_are_refused(model, state_dict):
    with pytest.raises(ValueError, match="and [0-9]+ more; of the wrong shape"):
        load_checkpoint(keras_dualstream.DualViTS(input_shape=(32, 32, 3)), state_dict)
    with pytest.raises(TypeError, match="`path_or_mapping` must be the path .* or a dict .* Received: <class 'list'>"):
        load_checkpoint(model, list(state_dict))
    with pytest.raises(TypeError, match="`model` must come from a builder"):
        load_checkpoint(keras.Sequential(), state_dict)
    with pytest.raises(TypeError, match="`model` must come from a builder"):
        load_checkpoint(keras_dualstream.DSFPN(model.backbone, position=None, channels=8), state_dict)


def test_only_the_counters_of_known_normalisations_are_left_out(model, state_dict):
    with pytest.raises(ValueError, match="in the checkpoint but not in the model: norm9.num_batches_tracked"):
        load_checkpoint(model, {**state_dict, "norm9.num_batches_tracked": np.zeros((), "int64")})
    with pytest.raises(TypeError, match="must have the names of tensors as keys. Received: 3"):
        load_checkpoint(model, {**state_dict, 3: np.zeros(1)})
