"""Blocks as programs of their own on JAX."""

import functools
import types

import keras
import numpy as np
import pytest
from helpers import images
from helpers import randomize
from helpers import tiny_dfvt
from helpers import tiny_dsnet
from helpers import tiny_model
from helpers import tiny_transxnet
from helpers import to_numpy

from keras_dualstream.layers.block import Block
from keras_dualstream.layers.drop_path import DropPath
from keras_dualstream.layers.transxnet_block import TransXNetBlock
from keras_dualstream.models import block_programs
from keras_dualstream.models.flat_model import FlatModel
from keras_dualstream.ops import jax_program
from keras_dualstream.ops.jax_recomputation import keeping_little

pytestmark = pytest.mark.skipif(keras.config.backend() != "jax", reason="Only JAX makes programs of blocks.")

DEEP = dict(depths=(2, 3, 1, 1), drop_path_rate=0.5)


def values_of(model):
    """The values of a model's variables, as `stateless_call` takes them."""
    return [[v.value for v in of] for of in (model.trainable_variables, model.non_trainable_variables)]


def stage_of(model, stage):
    """The blocks of one stage as a model, which compiles sooner than the whole."""
    blocks = [layer for layer in model.layers if layer.name.startswith(f"stage{stage}_block")]
    return randomize(FlatModel(blocks[0].input, blocks[-1].output))


def inputs_of(model, batch):
    """Arrays of the shapes that a model takes, in float64."""
    return keras.tree.map_structure(
        lambda x: images(*(size or batch for size in x.shape)).astype("float64"), model.input
    )


def sum_of_squares(y):
    return sum(keras.ops.sum(keras.ops.square(part)) for part in keras.tree.flatten(y))


def gradients_and_state(model, x):
    """What a training step computes: the loss' gradients and the variables it moves."""
    import jax

    values, moving = values_of(model)

    @jax.jit
    def step(trainable):
        def loss(trainable):
            y, moved = model.stateless_call(trainable, moving, x, training=True)
            return sum_of_squares(y), moved

        return jax.grad(loss, has_aux=True)(trainable)

    return [[np.asarray(array) for array in arrays] for arrays in step(values)]


def note_programs(monkeypatch):
    """A list to which each program of a block, from now on, is added when it is made."""
    made = []
    monkeypatch.setattr(
        block_programs, "keeping_little", lambda function: made.append(function) or keeping_little(function)
    )
    return made


# With whole numbers among what a block's program is given, the seeds of its attention's dropout.
dropping_dsnet = functools.partial(tiny_dsnet, attention_dropout_rate=0.1)


# Dual-ViT has blocks of one kind in its first two stages, of another in its last two.
STAGES = [(tiny_transxnet, 2), (dropping_dsnet, 2), (tiny_model, 2), (tiny_model, 4)]


# TransXNet's first block drops nothing, and shares its program with the second, which does.
@pytest.mark.parametrize(("make", "stage"), [(tiny_dfvt, 1), (tiny_transxnet, 1), *STAGES[1:]])
def test_gradients_statistics_and_draws_are_those_of_the_layers(make, stage, monkeypatch, float64):
    model = stage_of(make(depths=(2, 2, 2, 2), drop_path_rate=0.3, dtype=float64), stage)
    x = inputs_of(model, batch=4)
    made = note_programs(monkeypatch)
    programs = gradients_and_state(model, x)
    assert made
    monkeypatch.setattr(block_programs, "Block", ())
    layers = gradients_and_state(model, x)
    largest = max(np.abs(gradient).max() for gradient in layers[0])
    for of_programs, of_layers in zip(programs[0], layers[0], strict=True):
        # A bias before a batch normalisation has no gradient but rounding.
        np.testing.assert_allclose(of_programs, of_layers, rtol=1e-9, atol=1e-13 * largest)
    for of_programs, of_layers in zip(programs[1], layers[1], strict=True):
        np.testing.assert_allclose(of_programs, of_layers, rtol=1e-12)


class Dropping(Block, keras.layers.Layer):
    """A residual branch that is dropped."""

    def __init__(self, drop_path, **kwargs):
        super().__init__(**kwargs)
        self.drop_path = drop_path

    def call(self, x, training=None):
        return x + self.drop_path.drop(x, self.drop_path.draw(x, training=training)[0])


class OfOwnDraws(DropPath):
    def draw(self, x, training=None):
        return [3 * factor for factor in super().draw(x, training=training)] if training else [None]


def called_again(x):
    block = Dropping(DropPath(0.5, seed=1))
    return Dropping(DropPath(0.4, seed=2))(block(block(x)))


def of_one_drop_path(x):
    drop_path = DropPath(0.5, seed=1)
    return Dropping(drop_path)(Dropping(drop_path)(Dropping(DropPath(0.4, seed=2))(x)))


def told_to_train(x):
    return Dropping(DropPath(0.5, seed=1))(Dropping(DropPath(0.4, seed=2))(x), training=True)


def drawing_in_its_own_way(x):
    return Dropping(DropPath(0.5, seed=1))(Dropping(OfOwnDraws(0.4, seed=2))(x))


def outputs_and_seeds(model, x):
    """What two training steps give and draw."""
    import jax

    step = jax.jit(lambda moving, x: model.stateless_call([], moving, x, training=True))
    moving, outputs = values_of(model)[1], []
    for _ in range(2):
        y, moving = step(moving, x)
        outputs.append(y)
    return [np.asarray(array) for array in [*outputs, *moving]]


@pytest.mark.parametrize("connect", [called_again, of_one_drop_path, told_to_train, drawing_in_its_own_way])
def test_graphs_of_any_kind_draw_what_their_layers_would(connect, monkeypatch):
    x = keras.Input((3,))
    model = FlatModel(x, connect(x))
    made = note_programs(monkeypatch)
    programs = outputs_and_seeds(model, np.ones((16, 3), "float32"))
    assert made
    monkeypatch.setattr(block_programs, "Block", ())
    for of_programs, of_layers in zip(programs, outputs_and_seeds(model, np.ones((16, 3), "float32")), strict=True):
        np.testing.assert_array_equal(of_programs, of_layers)


def test_blocks_of_another_batch_drop_each_of_its_samples_for_itself():
    x, one = keras.Input((3,)), keras.Input(batch_shape=(1, 3))
    first = Dropping(DropPath(0.5, seed=1))(one)
    model = FlatModel([one, x], Dropping(DropPath(0.5, seed=2))(x + 0 * first))
    y, _ = outputs_and_seeds(model, [np.ones((1, 3), "float32"), np.ones((64, 3), "float32")])[:2]
    assert set(np.unique(y)) == {1, 3}


def loops_of(model, monkeypatch, **kwargs):
    """How many blocks each loop of a traced model takes."""
    import jax

    x = images(1, *model.input_shape[1:])
    counts = count_loops(monkeypatch)
    jax.make_jaxpr(lambda x: model.stateless_call(*values_of(model), x, **kwargs))(x)
    return counts


def count_loops(monkeypatch):
    """A list to which each loop, from now on, appends how many blocks it takes."""
    counts = []

    def counting(function, choices, state):
        counts.append(len(choices))
        return jax_program.one_after_the_other(function, choices, state)

    monkeypatch.setattr(block_programs, "one_after_the_other", counting)
    return counts


@pytest.mark.parametrize(("make", "stage"), STAGES)
def test_a_prediction_and_its_gradients_in_loops_are_those_of_the_layers(make, stage, monkeypatch, float64):
    import jax

    model = stage_of(make(depths=(1, 3, 1, 3), dtype=float64), stage)
    x = inputs_of(model, batch=1)

    def predict():
        # Inside of the gradient, not around it, where there would be no loops.
        @jax.jit
        def loss(trainable, moving, x):
            y = keras.tree.flatten(model.stateless_call(trainable, moving, x)[0])
            return sum_of_squares(y), y

        (_, y), (of_weights, of_x) = jax.value_and_grad(loss, (0, 2), has_aux=True)(*values_of(model), x)
        return y, [*of_weights, *keras.tree.flatten(of_x)]

    counts = count_loops(monkeypatch)
    y, gradients = predict()
    assert set(counts) == {3}
    monkeypatch.setattr(block_programs, "Block", ())
    y_of_layers, gradients_of_layers = predict()
    for found, expected in zip(y, y_of_layers, strict=True):
        # Of a map some numbers are close to zero, and their rounding that of the others.
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14 * np.abs(expected).max())
    largest = max(np.abs(gradient).max() for gradient in gradients_of_layers)
    for found, expected in zip(gradients, gradients_of_layers, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-13 * largest)


def test_training_has_no_loops(monkeypatch):
    assert loops_of(tiny_transxnet(**DEEP), monkeypatch, training=True) == []


class OnBackbone(keras.Model):
    """A model on a backbone that predicts while the model trains."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.pool, self.head = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)
        self.head.build((None, backbone.output_shape[-1]))
        self.built = True

    def call(self, x):
        return self.head(self.pool(self.backbone(x, training=False)))


@pytest.mark.parametrize(("frozen", "loops"), [(False, []), (True, [2, 3])])
def test_a_backbone_that_is_fine_tuned_has_no_loops_but_a_frozen_one_has(frozen, loops, monkeypatch):
    import jax

    backbone = tiny_transxnet(include_top=False, classes=None, **DEEP)
    backbone.trainable = not frozen
    model = OnBackbone(backbone)
    x = images(1, *backbone.input_shape[1:])
    trainable, moving = values_of(model)
    counts = count_loops(monkeypatch)
    jax.make_jaxpr(jax.grad(lambda values: keras.ops.sum(model.stateless_call(values, moving, x)[0])))(trainable)
    assert counts == loops


class Resized(keras.layers.Layer):
    """What a backbone gives, at the size that it has of another image."""

    def __init__(self, backbone, size):
        super().__init__()
        self.backbone, self.size = backbone, size
        self.built = True

    def call(self, x):
        _, height, width, _ = self.backbone.compute_output_shape((1, *self.size, 3))
        return keras.ops.image.resize(self.backbone(x), (height, width))


def test_shapes_of_other_sizes_can_be_asked_for_while_jax_compiles():
    backbone = tiny_transxnet(include_top=False, classes=None, input_shape=(None, None, 3), depths=(2, 2, 1, 1))
    images_in = keras.Input((64, 64, 3))
    model = keras.Model(images_in, Resized(backbone, (96, 64))(images_in))
    assert model.predict(images(1, 64, 64, 3)).shape[1:3] == (3, 2)


class Twice(Block, keras.layers.Layer):
    """A block of two results from one argument."""

    def call(self, x):
        return 2 * x, 3 * x


class Halving(Block, keras.layers.Layer):
    """A block whose result is smaller, which the graph of an unknown size does not tell."""

    def call(self, x):
        return x[:, ::2]


def of_two_results(x):
    y, _ = Twice()(x)
    return Twice()(y)[1]


@pytest.mark.parametrize(
    ("connect", "expected"),
    [(of_two_results, [0, 6, 12, 18, 24]), (lambda x: Halving()(Halving()(x)), [0, 4])],
)
def test_blocks_that_hand_on_something_else_are_no_loop(connect, expected, monkeypatch):
    x = keras.Input((None,))
    counts = count_loops(monkeypatch)
    model = FlatModel(x, connect(x))
    np.testing.assert_array_equal(model.predict(np.arange(5.0)[None]), [expected])
    assert counts == []


SOMETHING = object()


class Mixing(Block, keras.layers.Layer):
    """A block of two arguments and numbers in a list beside something else."""

    def __init__(self, factors):
        super().__init__()
        self.factors = [*factors, SOMETHING]

    def call(self, x, y):
        return self.factors[0] * x + self.factors[1] * y


@pytest.mark.parametrize(
    ("factors", "swapped", "loops", "expected"),
    [([(2, 1), (2, 1)], False, [2], 13), ([(2, 1), (3, 1)], False, [], 18), ([(2, 1), (2, 1)], True, [], 11)],
)
def test_blocks_of_other_numbers_or_arguments_are_no_loop(factors, swapped, loops, expected, monkeypatch):
    x, y = keras.Input((1,)), keras.Input((1,))
    counts = count_loops(monkeypatch)
    first = Mixing(list(factors[0]))(x, y)
    second = Mixing(list(factors[1]))(*((y, first) if swapped else (first, y)))
    model = FlatModel([x, y], second)
    assert model.predict([np.ones((1, 1)), np.full((1, 1), 3.0)]).item() == expected
    assert counts == loops


def test_blocks_with_many_weights_are_no_loop(monkeypatch):
    model = tiny_transxnet(**DEEP)
    few, many = (model.get_layer(f"stage{i}_block1").count_params() for i in (1, 2))
    assert few < many
    monkeypatch.setattr(block_programs, "WEIGHTS_IN_LOOP", few)
    assert loops_of(model, monkeypatch) == [2]


def test_a_loop_ends_where_something_else_reads(monkeypatch):
    model = tiny_transxnet(**DEEP)
    outputs = [model.get_layer("stage2_block2").output, model.output]
    seen = FlatModel(model.inputs, outputs)
    assert loops_of(seen, monkeypatch) == [2, 2]
    x = images(1, 32, 40, 3)
    for found, expected in zip(seen.predict(x), keras.Model(model.inputs, outputs).predict(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def calls_while_traced(model, monkeypatch, **kwargs):
    """Which blocks JAX calls to trace a model."""
    import jax

    called = []
    call = TransXNetBlock.call
    monkeypatch.setattr(
        TransXNetBlock, "call", lambda self, *args, **kwargs: (called.append(self.name), call(self, *args, **kwargs))[1]
    )
    jax.make_jaxpr(lambda x: model.stateless_call(*values_of(model), x, **kwargs))(images(2, 32, 40, 3))
    return called


def test_alike_blocks_that_drop_are_traced_once_whatever_their_rate(monkeypatch):
    model = tiny_transxnet(**DEEP)
    rates = {model.get_layer(f"stage2_block{i}").drop_path_rate for i in (1, 2, 3)}
    assert len(rates) == 3
    # A layer knows whether it was called before.
    for _ in range(2):
        called = calls_while_traced(model, monkeypatch, training=True)
        # Also the first block, which drops nothing, and the second, which does.
        assert called == ["stage1_block1", "stage2_block1", "stage3_block1", "stage4_block1"]


def freeze_a_part(block):
    block.feed_forward.trainable = False


def change_an_object(block):
    block.feed_forward.expand.activation = functools.partial(keras.ops.leaky_relu, negative_slope=0.1)


def change_a_number(block):
    block.norm1.epsilon = 1e-2


def change_a_function(block):
    block.feed_forward.expand.activation = keras.activations.tanh


def change_precision(block):
    block.mixer.dtype_policy = "float64"


def change_a_private_list(block):
    block.feed_forward._numbers = [1]


def change_something_else(block):
    block.mixer.numbers = types.SimpleNamespace(first=1)


@pytest.mark.parametrize(
    "change",
    [
        freeze_a_part,
        change_a_number,
        change_a_function,
        change_an_object,
        change_precision,
        change_a_private_list,
        change_something_else,
    ],
)
def test_a_block_that_differs_is_traced_by_itself(change, monkeypatch):
    model = tiny_transxnet(**DEEP)
    change(model.get_layer("stage2_block2"))
    called = calls_while_traced(model, monkeypatch)
    assert called == ["stage1_block1", "stage2_block1", "stage2_block2", "stage3_block1", "stage4_block1"]


def same(count):
    return [keras.regularizers.L2(0.1)] * count


@pytest.mark.parametrize("regularizers", [same(1), same(3), list(map(keras.regularizers.L2, (0.1, 0.2, 0.4)))])
def test_losses_of_blocks_activations_are_not_lost(regularizers, monkeypatch):
    import jax

    model = tiny_transxnet(**DEEP)
    for i, regularizer in enumerate(regularizers, 1):
        model.get_layer(f"stage2_block{i}").activity_regularizer = regularizer
    x = images(2, 32, 40, 3)

    def losses():
        return jax.jit(lambda x: model.stateless_call(*values_of(model), x, return_losses=True)[-1])(x)

    of_programs = losses()
    monkeypatch.setattr(block_programs, "Block", ())
    assert len(of_programs) == len(regularizers)
    np.testing.assert_allclose(of_programs, losses(), rtol=1e-4)


EVERY_BLOCK = [
    "stage1_block1",
    "stage1_block2",
    "stage2_block1",
    "stage2_block2",
    "stage2_block3",
    "stage3_block1",
    "stage4_block1",
]


def test_half_precision_goes_the_way_of_layers(monkeypatch):
    assert calls_while_traced(tiny_transxnet(dtype="mixed_bfloat16", **DEEP), monkeypatch) == EVERY_BLOCK


def test_a_gradient_of_single_operations_compiles_no_program(monkeypatch):
    import jax

    # One block: each operation is compiled by itself.
    inputs = keras.Input((5, 6, 16))
    model = FlatModel(inputs, TransXNetBlock(sr_ratio=2, scales=(1, 3))(inputs))
    made = note_programs(monkeypatch)
    gradient = jax.grad(lambda x: keras.ops.sum(model.stateless_call(*values_of(model), x)[0][:, 0]))
    x = images(1, 5, 6, 16)
    assert np.abs(gradient(x)).max() > 0
    assert not made
    jax.make_jaxpr(gradient)(x)
    assert made


def test_a_frozen_half_precision_backbone_inside_a_model_keeps_its_weights():
    backbone = randomize(tiny_transxnet(include_top=False, classes=None, dtype="mixed_bfloat16", **DEEP))
    backbone.trainable = False
    model = keras.Sequential([backbone, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5)])
    model.compile("sgd", "mse")
    before = [to_numpy(weight) for weight in backbone.weights]
    model.train_on_batch(images(2, 32, 40, 3), np.ones((2, 5), "float32"))
    model.predict_on_batch(images(2, 32, 40, 3))
    for weight, value in zip(backbone.weights, before, strict=True):
        assert np.array_equal(to_numpy(weight), value), weight.path


@pytest.mark.parametrize("remat", [False, True])
def test_a_rematerialised_block_is_called_as_ever(remat, monkeypatch):
    import jax

    made = note_programs(monkeypatch)
    model = tiny_model(remat=remat)
    jax.make_jaxpr(lambda x: model.stateless_call(*values_of(model), x, training=True))(images(2, 32, 40, 3))
    assert len(made) == (1 if remat else 6)
