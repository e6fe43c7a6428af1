"""What several tests need: small models, weights that show every branch, gradients on every backend."""

import contextlib
import functools
import gzip
import json
import pathlib

import keras
import numpy as np
import pytest

import keras_dualstream

FIXTURES = pathlib.Path(__file__).parent / "fixtures"

# A Dual-ViT with every kind of layer, small enough to build in a moment.
TINY = dict(
    stem_dim=8,
    embed_dims=(8, 16, 24, 32),
    num_heads=(1, 2, 3, 4),
    depths=(1, 1, 2, 1),
    mlp_ratios=(2, 2, 2, 2),
    layer_scale_init_value=0.5,
)


# A TransXNet with every kind of layer; its position bias is made for another size than the tests' images.
TINY_TRANSXNET = dict(
    embed_dims=(8, 16, 24, 32),
    num_heads=(1, 2, 3, 4),
    depths=(1, 1, 1, 1),
    mlp_ratios=(2, 2, 2, 2),
    kernel_size=3,
    pretraining_size=48,
    layer_scale_init_value=0.5,
)

# A DFvT whose first stage shifts its windows on the tests' images, and the third on larger ones.
TINY_DFVT = dict(
    embed_dim=48, depths=(2, 1, 2, 1), num_heads=(1, 2, 4, 4), mlp_ratio=2.0, window_size=2, drop_path_rate=0.0
)

# A DS-Net with every kind of layer; heads, strides and channels differ from stage to stage.
TINY_DSNET = dict(embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), depths=(1, 1, 1, 1), mlp_ratio=2.0)

# For `compile` in tests that are about something else: TensorFlow takes longer to trace a training step of a Dual-ViT
# than to run twenty of them eagerly. JAX must not, it would compile every operation by itself.
RUN_EAGERLY = keras.config.backend() == "tensorflow"


def slow_on(*backends):
    """The mark of what takes half a minute or more on these backends; `make parity` runs it."""
    # A mark elsewhere too, as `pytest.param` takes nothing else.
    return pytest.mark.slow if keras.config.backend() in backends else pytest.mark.skipif(False, reason="it is quick")


# For what takes XLA that long, such as several training steps.
slow_to_compile = slow_on("jax")


# For a test of what no backend computes: files, names, configurations.
one_backend = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="the same on every backend; one shows it all"
)


def tiny_transxnet(input_shape=(32, 40, 3), classes=5, **options):
    """A small TransXNet classifier made by the public builder."""
    options = {**TINY_TRANSXNET, "drop_path_rate": 0.0, **options}
    return keras_dualstream.TransXNetT(input_shape=input_shape, classes=classes, **options)


def tiny_dfvt(input_shape=(32, 40, 3), classes=5, **options):
    """A small DFvT classifier made by the public builder."""
    return keras_dualstream.DFvTT(input_shape=input_shape, classes=classes, **{**TINY_DFVT, **options})


def tiny_dsnet(input_shape=(64, 72, 3), classes=5, **options):
    """A small DS-Net classifier made by the public builder."""
    options = {**TINY_DSNET, "drop_path_rate": 0.0, "attention_dropout_rate": 0.0, **options}
    return keras_dualstream.DSNetT(input_shape=input_shape, classes=classes, **options)


def tiny_model(input_shape=(32, 40, 3), classes=5, **options):
    """A small classifier made by the public builder."""
    options = {**TINY, "drop_path_rate": 0.0, **options}
    return keras_dualstream.DualViTS(input_shape=input_shape, classes=classes, **options)


@functools.cache
def parameter_counts(builder, **options):
    """All parameters of a variant and the trainable ones; large variants take seconds to build."""
    model = getattr(keras_dualstream, builder)(**options)
    return model.count_params(), sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def randomize(model, seed=0):
    """Draws every weight anew, so that no branch is hidden by a zero or a one."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "seed_generator" in weight.path:
            continue
        noise = rng.standard_normal(weight.shape)
        if weight.path.endswith("moving_variance"):
            value = 0.5 + rng.random(weight.shape)
        elif weight.path.endswith("gamma"):
            value = 0.7 + 0.1 * noise
        elif len(weight.shape) < 2:
            value = 0.1 * noise
        else:
            value = noise / np.sqrt(np.prod(weight.shape[:-1]))
        # Of the right dtype here: JAX would compile a conversion for every shape.
        weight.assign(value.astype(weight.dtype))
    return model


def images(*shape, seed=0):
    """Normalised images, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def relative_error(value, expected):
    """‖value - expected‖ / ‖expected‖."""
    value, expected = np.asarray(to_numpy(value), "float64"), np.asarray(to_numpy(expected), "float64")
    assert value.shape == expected.shape
    return np.linalg.norm(value - expected) / np.linalg.norm(expected)


def to_numpy(x):
    """A tensor of any backend, or an array, as an array."""
    return x if isinstance(x, (np.ndarray, float)) else keras.ops.convert_to_numpy(x)


def read_manifest(variant):
    """The names and shapes of a variant's PyTorch checkpoint."""
    with gzip.open(FIXTURES / "parity" / f"{variant}.json.gz", "rt") as file:
        return json.load(file)


def predict(model, x):
    """What `model.predict` gives; operation by operation on TensorFlow, which traces a small model for longer."""
    if keras.config.backend() == "tensorflow":
        return keras.tree.map_structure(to_numpy, model(x, training=False))
    return model.predict(x, verbose=0)


def compiled(model, **options):
    """The model's function of its inputs, as one program on JAX, which else compiles every operation by itself."""
    if keras.config.backend() != "jax":
        return functools.partial(model, **options)
    import jax

    @jax.jit
    def run(values, inputs):
        with keras.StatelessScope(state_mapping=list(zip(model.variables, values, strict=True))):
            return model(*inputs, **options)

    return lambda *inputs: run([variable.value for variable in model.variables], inputs)


def gradient_function(model, loss, training=False):
    """The function from inputs to `loss(model(*inputs))` and its gradients.

    Args:
        model: a built model or layer.
        loss: function from the model's output to a scalar tensor.
        training: bool. Non-trainable weights move as in training.

    Returns:
        A function of arrays that returns a float and a list of arrays in the
        order of `model.trainable_weights`, `None` where no gradient arrives.
    """
    make = {"tensorflow": _tensorflow_gradients, "jax": _jax_gradients, "torch": _torch_gradients}
    compute = make[keras.config.backend()](model, loss, training)

    def run(*arrays):
        value, gradients = compute(*(keras.ops.convert_to_tensor(array) for array in arrays))
        return float(value), [None if gradient is None else to_numpy(gradient) for gradient in gradients]

    return run


def _tensorflow_gradients(model, loss, training):
    import tensorflow as tf

    def compute(*inputs):
        with tf.GradientTape() as tape:
            value = loss(model(*inputs, training=training))
        return value, tape.gradient(value, [weight.value for weight in model.trainable_weights])

    return compute


def _jax_gradients(model, loss, training):
    import jax

    @jax.jit
    def gradients(trainable, non_trainable, inputs):
        def compute(trainable):
            # Only where it matters: a layer's `stateless_call` hands it on to layers that know no `training`.
            options = {"training": True} if training else {}
            outputs, updated = model.stateless_call(trainable, non_trainable, *inputs, **options)
            return loss(outputs), updated

        return jax.value_and_grad(compute, has_aux=True)(trainable)

    def compute(*inputs):
        trainable = [variable.value for variable in model.trainable_variables]
        non_trainable = [variable.value for variable in model.non_trainable_variables]
        (value, updated), found = gradients(trainable, non_trainable, inputs)
        for variable, new in zip(model.non_trainable_variables, updated, strict=True):
            variable.assign(new)
        return value, found

    return compute


def _torch_gradients(model, loss, training):
    def compute(*inputs):
        model.zero_grad()
        value = loss(model(*inputs, training=training))
        value.backward()
        return value.detach(), [weight.value.grad for weight in model.trainable_weights]

    return compute


class Convolution(keras.layers.Layer):
    """A function of a map and a kernel as a layer, so that `gradient_function` can differentiate it by both."""

    def __init__(self, x, kernel, convolve):
        super().__init__()
        self.convolve = convolve
        self.map = self.add_weight(name="map", shape=x.shape, initializer=lambda *_, **__: x)
        self.kernel = self.add_weight(name="kernel", shape=kernel.shape, initializer=lambda *_, **__: kernel)
        self.built = True

    def call(self, weights):
        # A tensor made of the variable, as a layer before would give it.
        y = self.convolve(1.0 * self.map, 1.0 * self.kernel)
        return keras.ops.sum(y * weights)


def gradients_by_differences(function, *arrays):
    """The exact gradients of a function that is linear in each array: its values at each array's unit vectors."""
    gradients = []
    for position, array in enumerate(arrays):
        gradient = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            unit = np.zeros(array.shape)
            unit[index] = 1
            gradient[index] = function(*arrays[:position], unit, *arrays[position + 1 :])
        gradients.append(gradient)
    return gradients


def central_differences(function, arrays, position, step=1e-5):
    """The gradient of a function of float64 arrays with respect to one of them, to about nine digits."""
    gradient = np.zeros(arrays[position].shape)
    for index in np.ndindex(gradient.shape):
        moved = [array.copy() for array in arrays]
        moved[position][index] += step
        above = function(*moved)
        moved[position][index] -= 2 * step
        gradient[index] = (above - function(*moved)) / (2 * step)
    return gradient


def without_gradients():
    """A context like that of `predict`: PyTorch keeps nothing for a backward pass there."""
    if keras.config.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


def gradients_of(function, weights, arrays, dtype):
    """The gradients of the weighted sum of `function(*tensors)` with respect to each tensor."""

    class Weighted(keras.layers.Layer):
        def build(self, input_shape):
            self.arrays = [self.add_weight(shape=array.shape, initializer="zeros") for array in arrays]

        def call(self, weights):
            tensors = [keras.ops.convert_to_tensor(array) for array in self.arrays]
            return keras.ops.sum(function(*tensors) * weights)

    layer = Weighted(dtype=dtype)
    layer.build(None)
    for variable, array in zip(layer.arrays, arrays, strict=True):
        variable.assign(keras.ops.convert_to_tensor(array, dtype=dtype))
    return gradient_function(layer, lambda total: total)(keras.ops.convert_to_tensor(weights, dtype=dtype))[1]
