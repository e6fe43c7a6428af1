"""Parts of a map's channels."""

import contextlib

import keras
import numpy as np
import pytest
from helpers import gradients_of
from helpers import images
from helpers import relative_error
from helpers import to_numpy
from helpers import without_gradients
from keras import ops

from keras_dualstream.ops.channels import parts_and_functions
from keras_dualstream.ops.channels import split_channels

FUNCTIONS = (lambda x: 2 * x, ops.square, ops.sin)


def by_parts(x, sizes):
    parts = np.split(x, np.cumsum(sizes)[:-1], axis=-1)
    values = (2 * parts[0], *(part**2 for part in parts[1:2]), *(np.sin(part) for part in parts[2:]))
    return np.concatenate([part + value for part, value in zip(parts, values, strict=True)], axis=-1)


@pytest.mark.parametrize("sizes", [(5,), (1, 4), (2, 1, 2)])
def test_parts_are_the_channels_in_their_order(sizes):
    x = images(2, 3, 4, 5)
    parts = split_channels(ops.convert_to_tensor(x), sizes)
    assert [part.shape[-1] for part in parts] == list(sizes)
    np.testing.assert_array_equal(np.concatenate([to_numpy(part) for part in parts], axis=-1), x)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("sizes", [(5,), (1, 4), (2, 1, 2)])
def test_each_part_and_its_function(sizes, overwrite):
    x = images(2, 3, 4, 5)
    functions = FUNCTIONS[: len(sizes)]
    for mode in (contextlib.nullcontext, without_gradients):
        given = ops.convert_to_tensor(x.copy())
        with mode():
            found = parts_and_functions(given, sizes, functions, overwrite)
        assert relative_error(found, by_parts(x, sizes)) < 1e-6
        overwritten = overwrite and mode is without_gradients and keras.config.backend() == "torch"
        assert (found is given) == overwritten
        np.testing.assert_array_equal(to_numpy(given), to_numpy(found) if overwritten else x)


def test_gradients():
    x, weights = images(2, 3, 4, 5), images(2, 3, 4, 5, seed=1)
    (found,) = gradients_of(lambda x: parts_and_functions(x, (2, 1, 2), FUNCTIONS), weights, [x], "float32")
    expected = np.concatenate([np.full((2, 3, 4, 2), 3.0), 1 + 2 * x[..., 2:3], 1 + np.cos(x[..., 3:])], axis=-1)
    assert relative_error(found, expected * weights) < 1e-6


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.skipif(keras.config.backend() != "torch", reason="transforms and traces are PyTorch's")
def test_transforms_and_traces_without_gradients_overwrite_nothing():
    import torch

    x, sizes = torch.from_numpy(images(2, 3, 4, 5)), (2, 1, 2)
    expected = by_parts(to_numpy(x), sizes)

    def function(x):
        return parts_and_functions(x, sizes, FUNCTIONS, overwrite=True)

    class Module(torch.nn.Module):
        def forward(self, x):
            return function(x)

    with without_gradients():
        assert relative_error(torch.func.vmap(function)(x.clone()), expected) < 1e-6
        assert relative_error(torch.func.jvp(function, (x.clone(),), (x,))[0], expected) < 1e-6
        traced = torch.jit.trace(function, (x.clone(),))
        exported = torch.export.export(Module(), (x,))
    assert not [node for node in exported.graph.nodes if str(node.target).endswith("_.Tensor")]
    found = traced(x.clone().requires_grad_())
    assert relative_error(found.detach(), expected) < 1e-6
    assert found.requires_grad
