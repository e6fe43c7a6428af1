"""Blocks as programs of their own on JAX."""

import keras
import numpy as np
import pytest
from helpers import images
from helpers import randomize
from helpers import relative_error
from helpers import tiny_dfvt
from helpers import tiny_dsnet
from helpers import tiny_model
from helpers import tiny_transxnet
from helpers import to_numpy

from keras_dualstream.layers.drop_path import DropPath
from keras_dualstream.layers.transxnet_block import TransXNetBlock
from keras_dualstream.models import block_programs

pytestmark = pytest.mark.skipif(keras.config.backend() != "jax", reason="Only JAX makes programs of blocks.")

DEEP = dict(depths=(1, 3, 1, 1), drop_path_rate=0.5)


def gradients_and_state(model, x):
    """What a training step computes: the loss' gradients and the variables it moves."""
    import jax

    moving = [variable.value for variable in model.non_trainable_variables]

    @jax.jit
    def step(trainable):
        def loss(trainable):
            y, moved = model.stateless_call(trainable, moving, x, training=True)
            return keras.ops.sum(keras.ops.square(y)), moved

        return jax.grad(loss, has_aux=True)(trainable)

    return [[np.asarray(array) for array in arrays] for arrays in step([v.value for v in model.trainable_variables])]


@pytest.mark.parametrize("make", [tiny_transxnet, tiny_dfvt, tiny_dsnet, tiny_model])
def test_gradients_statistics_and_draws_are_those_of_the_layers(make, monkeypatch):
    model = make(classifier_activation=None, drop_path_rate=0.3)
    randomize(model)
    x = images(4, *model.input_shape[1:])
    programs = gradients_and_state(model, x)
    monkeypatch.setattr(block_programs, "Block", ())
    layers = gradients_and_state(model, x)
    scale = max(np.abs(gradient).max() for gradient in layers[0])
    for of_programs, of_layers in zip(programs[0], layers[0], strict=True):
        assert np.abs(of_programs - of_layers).max() < 2e-5 * scale
    for of_programs, of_layers in zip(programs[1], layers[1], strict=True):
        assert relative_error(of_programs.astype("float64"), of_layers.astype("float64")) < 1e-5


def calls_while_traced(model, monkeypatch, **kwargs):
    """Which blocks JAX calls to trace a model."""
    import jax

    called = []
    call = TransXNetBlock.call
    monkeypatch.setattr(
        TransXNetBlock, "call", lambda self, *args, **kwargs: (called.append(self.name), call(self, *args, **kwargs))[1]
    )
    trainable, moving = ([v.value for v in of] for of in (model.trainable_variables, model.non_trainable_variables))
    jax.make_jaxpr(lambda x: model.stateless_call(trainable, moving, x, **kwargs))(images(2, 32, 40, 3))
    return called


def test_alike_blocks_are_traced_once_whatever_their_rate(monkeypatch):
    model = tiny_transxnet(**DEEP)
    rates = {model.get_layer(f"stage2_block{i}").drop_path_rate for i in (1, 2, 3)}
    assert len(rates) == 3
    called = calls_while_traced(model, monkeypatch, training=True)
    assert called == ["stage1_block1", "stage2_block1", "stage3_block1", "stage4_block1"]


def freeze_a_part(block):
    block.feed_forward.trainable = False


def change_a_number(block):
    block.norm1.epsilon = 1e-2


def change_a_function(block):
    block.feed_forward.expand.activation = keras.activations.tanh


def change_precision(block):
    block.mixer.dtype_policy = "bfloat16"


@pytest.mark.parametrize("change", [freeze_a_part, change_a_number, change_a_function, change_precision])
def test_a_block_that_differs_is_traced_by_itself(change, monkeypatch):
    model = tiny_transxnet(**DEEP)
    change(model.get_layer("stage2_block2"))
    called = calls_while_traced(model, monkeypatch)
    assert called == ["stage1_block1", "stage2_block1", "stage2_block2", "stage3_block1", "stage4_block1"]


def test_a_block_with_a_loss_of_its_activations_is_called_as_ever(monkeypatch):
    model = tiny_transxnet(**DEEP)
    model.get_layer("stage2_block2").activity_regularizer = keras.regularizers.L2(0.1)
    trainable, moving = ([v.value for v in of] for of in (model.trainable_variables, model.non_trainable_variables))
    import jax

    losses = jax.jit(lambda x: model.stateless_call(trainable, moving, x, return_losses=True)[-1])(images(2, 32, 40, 3))
    assert len(losses) == 1
    assert float(losses[0]) > 0


def test_a_layer_draws_with_the_rate_it_is_given():
    x = keras.ops.ones((64, 3))
    dropping, other = DropPath(0.25, seed=5), DropPath(0.75, seed=5)
    expected = to_numpy(dropping(x, training=True))
    with other.drawing_with(*dropping.rate_and_factor()):
        given = to_numpy(other(x, training=True))
    assert np.array_equal(given, expected)
    assert set(np.unique(expected)) == {np.float32(0), np.float32(1 / 0.75)}
    assert set(np.unique(to_numpy(other(x, training=True)))) == {0, 4}
