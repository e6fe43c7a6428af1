"""Blocks as functions that a graph of TensorFlow shares."""

import functools
import types
from unittest import mock

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
from keras_dualstream.models import block_programs
from keras_dualstream.models.flat_model import FlatModel
from keras_dualstream.ops import compiler
from keras_dualstream.ops.tensorflow_program import tensorflow_program

pytestmark = pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="Only TensorFlow makes functions.")

ONES = np.ones((3, 2), "float32")


class Scale(Block, keras.layers.Layer):
    """A block of one weight and one number."""

    def __init__(self, offset=1.0, **kwargs):
        super().__init__(**kwargs)
        self.offset = offset

    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return self.factor * x + self.offset


def chain(*blocks):
    """A model of blocks one after the other, whose weights are 2, 3 and so on, run as a graph."""
    x = keras.Input((2,))
    model = FlatModel(x, functools.reduce(lambda y, block: block(y), blocks, x))
    for i, block in enumerate(blocks, 2):
        block.factor.assign([i, i])
    return in_graph(model)


def in_graph(model, **options):
    """The model compiled to run as a graph of TensorFlow's own kernels."""
    model.compile("sgd", "mse", jit_compile=False, **options)
    return model


def count_calls(monkeypatch):
    """A list with how often each function made from now on is called while a graph is traced."""
    counts = []

    def counting(function):
        program, index = tensorflow_program(function), len(counts)
        counts.append(0)

        def call(*args):
            counts[index] += 1
            return program(*args)

        return call

    monkeypatch.setattr(block_programs, "tensorflow_program", counting)
    return counts


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (tiny_transxnet, [2, 3]),
        # Every second block shifts its windows.
        (tiny_dfvt, [2]),
        (functools.partial(tiny_dsnet, attention_dropout_rate=0.1), [2, 3]),
        (tiny_model, [2, 3]),
    ],
)
def test_a_prediction_by_functions_is_that_of_the_layers(make, expected, monkeypatch):
    options = dict(depths=(2, 3, 1, 1), classifier_activation=None, drop_path_rate=0.5, dtype="float64")
    model = in_graph(randomize(make(**options)))
    x = images(1, *model.input_shape[1:]).astype("float64")
    counts = count_calls(monkeypatch)
    found = model.predict_on_batch(x)
    assert counts == expected
    np.testing.assert_allclose(found, to_numpy(model(x, training=False)), rtol=1e-10, atol=1e-12)


def test_functions_know_no_size_where_the_model_knows_none(monkeypatch):
    size = dict(include_top=False, classes=None, input_shape=(None, None, 3))
    backbone = in_graph(randomize(tiny_transxnet(depths=(1, 2, 1, 1), **size)))
    counts = count_calls(monkeypatch)
    for x in (images(2, 32, 40, 3), images(1, 48, 32, 3), images(1, 64, 32, 3)):
        found = backbone.predict(x, verbose=0)
        np.testing.assert_allclose(found, to_numpy(backbone(x, training=False)), rtol=1e-4, atol=1e-5)
    # For the first sizes and, once they have changed, for any.
    assert counts == [2, 2]


def test_every_block_has_its_own_weights_as_they_are_now(monkeypatch):
    model = chain(Scale(), Scale(), Scale())
    counts = count_calls(monkeypatch)
    assert model.predict_on_batch(ONES).tolist() == [[41, 41]] * 3
    model.layers[2].factor.assign([0.0, -1.0])
    assert model.predict_on_batch(ONES).tolist() == [[5, -7]] * 3
    assert counts == [3]


@pytest.mark.parametrize("options", [dict(batch_size=2), dict(batch_size=1, steps_per_execution=3)])
def test_batches_of_another_size_or_several_at_once_have_functions(options, monkeypatch):
    model = chain(Scale(), Scale())
    in_graph(model, steps_per_execution=options.pop("steps_per_execution", 1))
    counts = count_calls(monkeypatch)
    assert model.predict(ONES, verbose=0, **options).tolist() == [[10, 10]] * 3
    assert counts
    assert set(counts) == {2}


def test_evaluation_has_functions_and_keeps_the_losses_of_activities(monkeypatch):
    regularizer = keras.regularizers.L2(0.1)
    blocks = [Scale(activity_regularizer=each) for each in (None, None, regularizer, regularizer)]
    model = chain(*blocks)
    counts = count_calls(monkeypatch)
    # 3, 10, 41, 206; the sum of the squares of the last two, a tenth of it for every sample.
    expected = (206 - 1) ** 2 + 0.1 * 2 * (41**2 + 206**2)
    np.testing.assert_allclose(model.evaluate(ONES, ONES, verbose=0), expected, rtol=1e-6)
    assert counts == [2, 2]


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([Scale, Scale], [2]),
        ([Scale], []),
        ([Scale, functools.partial(Scale, 2.0)], []),
        ([Scale, functools.partial(Scale, trainable=False), Scale], [2]),
        ([functools.partial(Scale, dtype="float64"), Scale], []),
        ([functools.partial(Scale, dtype="mixed_bfloat16")] * 2, []),
    ],
)
def test_only_plain_blocks_share_and_only_with_those_alike(blocks, expected, monkeypatch):
    model = chain(*(block() for block in blocks))
    counts = count_calls(monkeypatch)
    model.predict_on_batch(ONES)
    assert counts == expected


class Hiding(Scale):
    """A block whose number is inside of something else."""

    def __init__(self, attribute, value, read):
        super().__init__()
        setattr(self, attribute, value)
        self.read = read

    def call(self, x):
        return self.factor * x + self.read(self)


@pytest.mark.parametrize(
    ("attribute", "hide", "read"),
    [
        ("_offsets", lambda offset: [offset], lambda block: block._offsets[0]),
        ("_offsets", lambda offset: {"x": offset}, lambda block: block._offsets["x"]),
        ("options", lambda offset: types.SimpleNamespace(offset=offset), lambda block: block.options.offset),
        ("offsets", lambda offset: {offset}, lambda block: sum(block.offsets)),
        ("offsets", range, lambda block: len(block.offsets)),
        ("offset", np.float32, lambda block: block.offset),
        ("array", lambda offset: keras.ops.convert_to_tensor(float(offset)), lambda block: block.array),
        ("drop_path_rate", float, lambda block: block.drop_path_rate),
        ("seed", int, lambda block: block.seed),
    ],
)
def test_whatever_a_block_keeps_its_number_in_is_its_own(attribute, hide, read):
    model = chain(*(Hiding(attribute, hide(i), read) for i in (1, 2)))
    assert model.predict_on_batch(ONES).tolist() == [[11, 11]] * 3


class Counting(Scale):
    """A block that counts its calls, which may have another factor."""

    def build(self, shape):
        super().build(shape)
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, by=None):
        self.count.assign_add(1.0)
        return super().call(x) if by is None else x * by


def test_what_blocks_change_when_they_predict_is_kept(monkeypatch):
    model = chain(Counting(), Counting())
    counts = count_calls(monkeypatch)
    for _ in range(3):
        model.predict_on_batch(ONES)
    assert counts == [2]
    assert [float(layer.count) for layer in model.layers[1:]] == [3, 3]


def test_arguments_with_names_reach_their_block():
    x, y = keras.Input((2,)), keras.Input((2,))
    model = in_graph(FlatModel([x, y], Counting()(Counting()(x), by=y)))
    assert model.predict_on_batch([ONES, 3 * ONES]).tolist() == [[6, 6]] * 3


def test_sparse_tensors_reach_their_blocks():
    import tensorflow as tf

    class Dense(Scale):
        def call(self, x):
            return super().call(tf.sparse.to_dense(x) if isinstance(x, tf.SparseTensor) else x)

    x = keras.Input((2,), sparse=True)
    model = in_graph(FlatModel(x, keras.layers.Add()([Dense()(x), Dense()(x)])))
    assert model.predict_on_batch(tf.sparse.from_dense(ONES)).tolist() == [[4, 4]] * 3


@pytest.mark.parametrize(
    ("use", "clears"),
    [
        (lambda model: model.predict_on_batch(ONES), True),
        (lambda model: model.train_on_batch(ONES, ONES), True),
        (lambda model: model(ONES), False),
    ],
)
def test_the_first_step_forgets_the_kernels_that_built_the_model(use, clears, monkeypatch):
    from tensorflow.python.eager import context

    model, cleared = chain(Scale(), Scale()), []
    monkeypatch.setattr(context.Context, "clear_kernel_cache", lambda self: cleared.append(self))
    use(model)
    first = len(cleared)
    use(model)
    assert (first > 0) is clears
    assert len(cleared) == first


class Around(keras.Model):
    """A model around one, which predicts while it takes gradients, and trains while it predicts."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def predict_step(self, data):
        return self.model(data[0], training=True)

    def train_step(self, data):
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self.model(data[0], training=False))
        assert None not in tape.gradient(loss, [weight.value for weight in self.model.trainable_weights])
        return {"loss": loss}


def predict_by_xla(model, path):
    model.compile(jit_compile=True)
    model.predict_on_batch(ONES)


def predict_on_several_devices(model, path):
    import tensorflow as tf

    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        chain(Scale(), Scale()).predict(ONES, verbose=0)


def predict_on_a_gpu(model, path):
    with mock.patch.object(compiler, "_has_gpu", return_value=True):
        model.predict_on_batch(ONES)


def call_in_a_function(model, path):
    import tensorflow as tf

    tf.function(model)(ONES)


@pytest.mark.parametrize(
    "use",
    [
        lambda model, path: model.train_on_batch(ONES, ONES),
        lambda model, path: in_graph(Around(model)).train_on_batch(ONES, ONES),
        lambda model, path: in_graph(Around(model)).predict_on_batch(ONES),
        lambda model, path: in_graph(model, run_eagerly=True).predict_on_batch(ONES),
        lambda model, path: model.export(path / "model", verbose=False),
        predict_by_xla,
        predict_on_several_devices,
        predict_on_a_gpu,
        call_in_a_function,
    ],
)
def test_where_something_else_is_done_than_to_predict_blocks_are_called_as_ever(use, monkeypatch, tmp_path):
    model = chain(Scale(), Scale())
    monkeypatch.setattr(block_programs, "tensorflow_program", lambda function: pytest.fail("A function was made."))
    use(model, tmp_path)
