"""What a model keeps while it is called."""

import gc
import weakref

import keras
import numpy as np
import pytest

from keras_dualstream.models.flat_model import FlatModel


class Watched(keras.layers.Layer):
    """Adds one, and has what it gives noted."""

    def __init__(self, note):
        super().__init__()
        self.note = note

    def call(self, x):
        y = x + 1
        self.note(y)
        return y


def watched_model(read_again):
    """Three layers, the first of whose results is an output too or not, and a list: at each, which results are left."""
    results, there = [], []

    def note(y):
        there.append([result() is not None for result in results])
        results.append(weakref.ref(y))

    images = keras.Input((2,))
    first = Watched(note)(images)
    last = Watched(note)(Watched(note)(first))
    model = FlatModel(images, [first, last] if read_again else last)
    # Keras called the layers to learn their shapes.
    results.clear()
    there.clear()
    return model, there


def test_a_call_forgets_what_no_later_layer_reads():
    model, there = watched_model(read_again=False)
    assert np.array_equal(keras.ops.convert_to_numpy(model(np.zeros((1, 2), "float32"))), [[3, 3]])
    assert there == [[], [True], [False, True]]


@pytest.mark.parametrize("size", [4, None])
def test_a_first_step_does_not_call_layers_for_shapes_that_are_known(size):
    called = []
    images = keras.Input((size, 2))
    y = keras.layers.Dense(3)(Watched(called.append)(images))
    model = FlatModel(images, {"y": y})
    model.compile("sgd", {"y": "mse"})
    called.clear()
    kernel = keras.ops.convert_to_numpy(model.layers[-1].kernel)
    loss = model.train_on_batch(np.zeros((5, 4, 2), "float32"), {"y": np.ones((5, 4, 3), "float32")})
    np.testing.assert_allclose(loss, np.square(1 - kernel.sum(axis=0)).mean(), rtol=1e-5)
    assert len(called) == (1 if size or keras.config.backend() == "tensorflow" else 2)


class Pair(Watched):
    """Gives another result before the one that is noted."""

    def call(self, x):
        return x + 2, super().call(x)


def test_a_call_forgets_what_nobody_reads():
    results, there = [], []

    def look(y):
        # Keras' tree of several results refers to itself on PyTorch.
        gc.collect()
        there.append(results[0]() is not None)

    images = keras.Input((2,))
    first, _ = Pair(lambda y: results.append(weakref.ref(y)))(images)
    last = Watched(look)(Watched(lambda y: None)(first))
    model = FlatModel(images, last)
    results.clear()
    there.clear()
    model(np.zeros((1, 2), "float32"))
    assert there == [False]


def test_a_call_keeps_what_is_an_output():
    model, there = watched_model(read_again=True)
    first, last = (keras.ops.convert_to_numpy(y) for y in model(np.zeros((1, 2), "float32")))
    assert there == [[], [True], [True, True]]
    assert np.array_equal(first, [[1, 1]])
    assert np.array_equal(last, [[3, 3]])


@pytest.mark.skipif(keras.config.backend() != "torch", reason="Only PyTorch's tensors hold their gradients.")
def test_a_step_drops_the_gradients_of_the_one_before_first():
    images = keras.Input((2,))
    dense = keras.layers.Dense(1)
    dense.build((None, 2))
    held = []
    model = FlatModel(images, dense(Watched(lambda y: held.append(dense.kernel.value.grad is not None))(images)))
    model.compile("sgd", "mse")
    for _ in range(2):
        held.clear()
        model.train_on_batch(np.ones((1, 2), "float32"), np.ones((1, 1), "float32"))
        assert held
        assert not any(held)
        assert dense.kernel.value.grad is not None


def test_a_model_tells_the_shapes_of_other_sizes_than_its_own():
    images = keras.Input((None, 2))
    model = FlatModel(images, keras.layers.Dense(3)(images))
    assert model.compute_output_shape((2, 4, 2)) == (2, 4, 3)
    assert model(keras.Input((5, 2), batch_size=7)).shape == (7, 5, 3)
