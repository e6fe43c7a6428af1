"""`compile`, `fit`, `evaluate` and `predict` as users call them."""

import contextlib

import keras
import numpy as np
import pytest
from helpers import RUN_EAGERLY
from helpers import gradient_function
from helpers import images
from helpers import randomize
from helpers import relative_error
from helpers import slow_to_compile
from helpers import tiny_model
from helpers import to_numpy
from keras import ops

from keras_dualstream.models.flat_model import FlatModel

SIZE = (32, 32, 3)


def colours(count, seed=0):
    """Images of one of five brightnesses, and which: something that can be learned at once."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 5
    pixels = 40 * labels[:, None, None, None] + 20 * rng.random((count, *SIZE))
    return pixels.astype("float32"), labels.astype("int32")


def as_numpy(x, y):
    return dict(x=x, y=y, batch_size=10)


def as_tf_data(x, y):
    import tensorflow as tf

    return dict(x=tf.data.Dataset.from_tensor_slices((x, y)).batch(10))


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x) // 10

    def __getitem__(self, index):
        batch = slice(10 * index, 10 * index + 10)
        return self.x[batch], self.y[batch]


def as_sequence(x, y):
    return dict(x=Batches(x, y))


def as_generator(x, y):
    batches = Batches(x, y)
    return dict(x=(batches[index] for _ in range(100) for index in range(len(batches))), steps_per_epoch=len(batches))


@pytest.fixture(scope="module")
def compiled():
    """A compiled model and the weights it starts from; its training step is traced once for all tests."""
    keras.utils.set_random_seed(7)
    model = tiny_model(SIZE, depths=(1, 1, 1, 1), drop_path_rate=0.1)
    # Ten times the rate sometimes goes up and down between epochs.
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model, [to_numpy(weight) for weight in model.weights]


@pytest.mark.parametrize("feed", [as_numpy, as_tf_data, as_sequence, as_generator])
def test_learns_from_every_kind_of_input(feed, compiled):
    x, y = colours(50)
    model, start = compiled
    model.set_weights(start)
    losses = model.fit(**feed(x, y), epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    loss, accuracy = model.evaluate(x, y, verbose=0)
    assert loss < np.log(5)
    assert accuracy > 0.25
    assert model.predict(x, verbose=0).shape == (50, 5)


def test_pytorch_trains_without_its_compiler():
    """Which ends a training step of every family with an error."""
    x, y = colours(5)
    model = tiny_model(SIZE)
    on_pytorch = keras.config.backend() == "torch"
    warning = pytest.warns(UserWarning, match="Model doesn't support `jit_compile=True`")
    with warning if on_pytorch else contextlib.nullcontext():
        model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=True)
    assert model.jit_compile is not on_pytorch
    if on_pytorch:
        assert np.isfinite(model.train_on_batch(x, y))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_trains_and_predicts_like_float32(policy):
    x, y = colours(20)
    depths = (1, 1, 1, 1)
    model = tiny_model(SIZE, depths=depths, dtype=policy, drop_path_rate=0.1)
    # With sixteen seeds the last loss is 0.71 to 0.81 of the first; with twice the rate it jumps about.
    optimizer = keras.optimizers.SGD(0.01)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, "sparse_categorical_crossentropy", run_eagerly=RUN_EAGERLY)
    losses = model.fit(x, y, batch_size=10, epochs=6, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert all(np.isfinite(to_numpy(weight)).all() for weight in model.weights)
    assert losses[-1] < 0.9 * losses[0]
    single = tiny_model(SIZE, depths=depths)
    single.set_weights([to_numpy(weight) for weight in without_seeds(model)])
    found = model.predict(x, verbose=0)
    assert found.dtype == np.float32
    assert relative_error(found, single.predict(x, verbose=0)) < 0.02


def without_seeds(model):
    return [weight for weight in model.weights if "seed_generator" not in weight.path]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_shows_every_branch_within_two_percent(policy):
    """With random weights and LayerScales around 0.7 every branch counts."""
    options = dict(depths=(1, 2, 2, 1), classifier_activation=None)
    single = randomize(tiny_model((64, 96, 3), **options))
    half = randomize(tiny_model((64, 96, 3), dtype=policy, **options))
    x = 255 * np.random.default_rng(0).random((4, 64, 96, 3)).astype("float32")
    assert relative_error(half.predict(x, verbose=0), single.predict(x, verbose=0)) < 0.02


def test_gradients_reach_every_trainable_weight():
    size = (61, 87)
    model = randomize(tiny_model((*size, 3), classifier_activation=None))
    target = ops.convert_to_tensor(np.random.default_rng(3).standard_normal((3, 5)), dtype="float32")
    gradient_step = gradient_function(model, lambda logits: ops.mean(ops.square(logits - target)), training=True)
    _, gradients = gradient_step(255 * np.random.default_rng(0).random((3, *size, 3)).astype("float32"))
    silent = {
        weight.path
        for weight, gradient in zip(model.trainable_weights, gradients, strict=True)
        if gradient is None or not np.abs(gradient).max() > 0
    }
    assert not silent


def test_token_labels_train_both_outputs():
    model = tiny_model(SIZE)
    outputs = model.training_outputs
    assert list(outputs) == ["logits", "token_logits"]
    trainer = keras.Model(model.input, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.SGD(0.05), loss=dict.fromkeys(outputs, loss), run_eagerly=RUN_EAGERLY)
    x, y = colours(20)
    labels = {"logits": y, "token_logits": np.broadcast_to(y[:, None, None], (20, 1, 1))}
    losses = trainer.fit(x, labels, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_stochastic_depth_is_seeded_and_only_in_training():
    x, _ = colours(20)
    outputs = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        whole = tiny_model(SIZE, drop_path_rate=0.5)
        # The second stage is the first whose blocks are dropped.
        model = randomize(FlatModel(whole.input, whole.backbone.pyramid_outputs["P3"]))
        np.testing.assert_array_equal(to_numpy(model(x)), to_numpy(model(x, training=False)))
        outputs.append([to_numpy(model(x, training=True)) for _ in range(2)])
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.abs(outputs[0][0] - outputs[0][1]).max() > 0
    assert np.abs(outputs[0][0] - outputs[2][0]).max() > 0


@slow_to_compile
def test_rematerialised_blocks_learn_the_same():
    x, y = colours(20)
    losses = []
    for remat in (False, True):
        keras.utils.set_random_seed(1)
        model = tiny_model(SIZE, depths=(1, 1, 1, 1), drop_path_rate=0.3, remat=remat)
        model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
        losses.append(model.fit(x, y, batch_size=10, epochs=2, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_batch_statistics_move_only_in_training():
    whole = tiny_model(SIZE)
    model = FlatModel(whole.input, whole.backbone.pyramid_outputs["P2"])
    norm = model.get_layer("stem_norm1")
    x = images(4, *SIZE)
    model.compile("sgd", "mse", run_eagerly=RUN_EAGERLY)
    model.predict(x, verbose=0)
    np.testing.assert_array_equal(to_numpy(norm.moving_mean), 0)
    model.fit(x, np.zeros((4, *model.output_shape[1:])), verbose=0)
    assert np.abs(to_numpy(norm.moving_mean)).min() > 0
