"""Files go into models of their size and of others, and back out, bit for bit where nothing differs."""

import argparse
import pickle

import numpy as np
import pytest
from helpers import images
from helpers import one_backend
from helpers import randomize
from helpers import relative_error
from helpers import tiny_model
from helpers import tiny_transxnet
from helpers import to_numpy
from published_files import as_paddle

from keras_dualstream.conversion import load_checkpoint
from keras_dualstream.conversion import read_checkpoint
from keras_dualstream.conversion import to_torch_state_dict
from keras_dualstream.conversion.adaptation import adapt_stem
from keras_dualstream.conversion.adaptation import resize_table

MODELS = {"dualvit": tiny_model, "transxnet": tiny_transxnet}


@pytest.fixture(scope="module", params=MODELS)
def family(request):
    """The maker of a small model, and a state dict of one."""
    make = MODELS[request.param]
    return make, to_torch_state_dict(randomize(make(), seed=2))


def write(path, state_dict):
    """A file of the format that the path's suffix says."""
    if path.suffix == ".npz":
        np.savez(path, **state_dict)
    elif path.suffix == ".pdparams":
        with open(path, "wb") as file:
            pickle.dump(as_paddle(state_dict), file, protocol=4)
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(state_dict, path)
    else:
        import torch

        tensors = {f"module.{name}": torch.tensor(array) for name, array in state_dict.items()}
        torch.save({"state_dict": tensors, "args": argparse.Namespace(lr=0.1), "epoch": 3}, path)
    return path


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_every_format_comes_back_bit_for_bit(family, tmp_path):
    make, state_dict = family
    model = make()
    # Only one has linear layers, and it alone can show Paddle's.
    formats = [".pth.tar", ".npz", ".safetensors"] + [".pdparams"] * (make is tiny_model)
    for suffix in formats:
        randomize(model, seed=3)
        load_checkpoint(model, write(tmp_path / f"file{suffix}", state_dict))
        assert_same(to_torch_state_dict(model), state_dict)


@one_backend
def test_the_dict_of_a_training_script_is_taken_as_it_is(family):
    make, state_dict = family
    model = make()
    wrapped = {f"module.{name}": array for name, array in state_dict.items()}
    load_checkpoint(model, {"model": wrapped, "epoch": 3, "accuracy": np.float64(81.6)})
    assert_same(to_torch_state_dict(model), state_dict)
    randomize(model)
    load_checkpoint(model, {**state_dict, "config": {"epochs": 300}})
    assert_same(to_torch_state_dict(model), state_dict)
    randomize(model)
    load_checkpoint(model, {"model": {}, "mine": state_dict}, entry="mine")
    assert_same(to_torch_state_dict(model), state_dict)


@one_backend
def test_buffers_that_follow_from_the_shapes_are_left_out(family):
    make, state_dict = family
    module = next(name for name in state_dict if name.count(".") > 2).rpartition(".")[0]
    extra = {f"{module}.relative_position_index": np.zeros((4, 4), "int64"), f"{module}.attn_mask": np.zeros((1, 4, 4))}
    model = make()
    load_checkpoint(model, {**state_dict, **extra})
    assert_same(to_torch_state_dict(model), state_dict)
    with pytest.raises(ValueError, match="in the checkpoint but not in the model: nowhere.attn_mask"):
        load_checkpoint(model, {**state_dict, "nowhere.attn_mask": np.zeros(3)})


@one_backend
def test_another_number_of_classes_keeps_the_head_and_says_so(family):
    make, state_dict = family
    model = randomize(make(classes=7), seed=3)
    before = to_torch_state_dict(model)
    with pytest.warns(UserWarning, match="the 5 classes are not the model's, whose layers keep their values: ") as said:
        load_checkpoint(model, state_dict)
    found = to_torch_state_dict(model)
    kept = [name for name in found if found[name].shape != state_dict[name].shape]
    assert all(name in str(said[0].message) for name in kept)
    assert_same(found, {**state_dict, **{name: before[name] for name in kept}})
    assert {name.rpartition(".")[0] for name in kept} in ({"classifier.2"}, {"head", "aux_head"})


@one_backend
def test_a_head_that_differs_otherwise_is_refused(family):
    make, state_dict = family
    model = make(classes=7)
    before = to_torch_state_dict(model)
    weight, bias = [name for name, array in state_dict.items() if array.shape[:1] == (5,)][:2]
    for change in ({bias: np.zeros(7)}, {bias: np.zeros(6)}, {weight: np.zeros((5, 9))}):
        with pytest.raises(ValueError, match="of the wrong shape"):
            load_checkpoint(model, {**state_dict, **change})
        assert_same(to_torch_state_dict(model), before)
    with pytest.raises(ValueError, match=f"missing in the checkpoint: {bias}"):
        load_checkpoint(model, {name: array for name, array in state_dict.items() if name != bias})


@one_backend
@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_adapt_the_stem_alone(channels, family):
    make, state_dict = family
    model = make(input_shape=(32, 40, channels))
    with pytest.warns(UserWarning, match=f"kernels for 3 image channels were made to fit {channels}: "):
        load_checkpoint(model, state_dict)
    found = to_torch_state_dict(model)
    (stem,) = [name for name in found if found[name].shape != state_dict[name].shape]
    expected = adapt_stem(state_dict[stem], channels)
    assert_same(found, {**state_dict, stem: expected})


@one_backend
def test_stems_follow_the_usual_rule():
    kernel = np.random.default_rng(0).standard_normal((4, 3, 5, 5)).astype("float32")
    red, green, blue = (kernel[:, [channel]] for channel in range(3))
    np.testing.assert_allclose(adapt_stem(kernel, 1), red + green + blue, rtol=1e-6, atol=1e-6)
    five = np.concatenate([red, green, blue, red, green], axis=1) * 3 / 5
    np.testing.assert_allclose(adapt_stem(kernel, 5), five, rtol=1e-6)
    assert adapt_stem(kernel, 5).dtype == np.float32


@one_backend
@pytest.mark.parametrize("size", [(9, 4), (36, 9), (5, 1), (16, 7)])
def test_tables_are_resized_as_pytorch_resizes_images(size):
    import torch

    table = np.random.default_rng(0).standard_normal((1, 3, 16, 4))
    expected = torch.nn.functional.interpolate(torch.tensor(table), size=size, mode="bicubic", align_corners=False)
    np.testing.assert_allclose(resize_table(table, *size), expected, atol=1e-12)
    assert resize_table(table.astype("float32"), *size).dtype == np.float32


@one_backend
def test_a_table_of_another_size_gives_the_same_outputs():
    """Resized when it is loaded, or on the way at each call."""
    model = randomize(tiny_transxnet(input_shape=(64, 64, 3), include_preprocessing=False), seed=2)
    larger = tiny_transxnet(input_shape=(64, 64, 3), include_preprocessing=False, pretraining_size=64)
    with pytest.warns(UserWarning, match="position tables were resized to the model's `pretraining_size`"):
        load_checkpoint(larger, to_torch_state_dict(model))
    x = images(2, 64, 64, 3)
    assert relative_error(to_numpy(larger(x)), model(x)) < 2e-6


@one_backend
def test_a_file_that_does_not_fit_changes_nothing(family, tmp_path):
    make, state_dict = family
    model = make()
    before = to_torch_state_dict(model)
    name = next(iter(state_dict))
    for path, reason in (
        (write(tmp_path / "more.npz", {**state_dict, "more": np.ones(3)}), "not in the model: more"),
        (write(tmp_path / "text.npz", {**state_dict, name: np.array(["x"])}), "has a dtype that is no plain number"),
        (tmp_path / "missing.pth", "does not exist"),
    ):
        with pytest.raises(ValueError, match=reason):
            load_checkpoint(model, str(path))
        assert_same(to_torch_state_dict(model), before)


@one_backend
def test_half_precision_files_are_exact(family, tmp_path):
    import torch

    make, state_dict = family
    tensors = {name: torch.tensor(array) for name, array in state_dict.items()}
    for dtype in (torch.float16, torch.bfloat16):
        halves = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        torch.save({"state_dict_ema": halves}, tmp_path / "half.pth")
        model = make()
        load_checkpoint(model, tmp_path / "half.pth")
        expected = {name: tensor.to(tensors[name].dtype).numpy() for name, tensor in halves.items()}
        assert_same(to_torch_state_dict(model), expected)
        assert {array.dtype.name for array in read_checkpoint(tmp_path / "half.pth").values()} <= {
            *("float16", "float32", "int64")
        }
