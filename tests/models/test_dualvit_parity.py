"""Dual-ViT computes what the published PyTorch code computes."""

import keras
import numpy as np
import pytest
from helpers import FIXTURES
from helpers import gradient_function
from helpers import read_manifest
from helpers import relative_error
from reference_weights import make_images
from reference_weights import make_state_dict
from reference_weights import sample_indices

import keras_dualstream
from keras_dualstream.conversion import dualvit

VARIANTS = {
    "dualvit_s": ("DualViTS", True, ["2x224x224", "1x256x320"]),
    "dualvit_s_no_token_label": ("DualViTS", False, ["2x224x224", "1x256x320"]),
    "dualvit_b": ("DualViTB", True, ["2x224x224"]),
    "dualvit_l": ("DualViTL", True, ["2x224x224"]),
}
CASES = [(variant, size) for variant, (_, _, sizes) in VARIANTS.items() for size in sizes]


def reference_model(variant, seed="dev", **options):
    """The variant with the reference's weights, for normalised images, giving logits."""
    builder, token_label_head, _ = VARIANTS[variant.removesuffix("_10_classes")]
    model = getattr(keras_dualstream, builder)(
        token_label_head=token_label_head, include_preprocessing=False, classifier_activation=None, **options
    )
    keras_dualstream.conversion.load_checkpoint(model, make_state_dict(read_manifest(variant), seed))
    return model


def parity_errors(variant, size, dtype):
    """The relative error of the logits and of every level of the pyramid."""
    batch, height, width = map(int, size.split("x"))
    model = reference_model(variant, input_shape=(height, width, 3), dtype=dtype)
    outputs = {"logits": model.output, **model.backbone.pyramid_outputs, **model.backbone.semantic_outputs}
    found = keras.Model(model.input, outputs).predict(make_images("dev", batch, height, width), verbose=0)
    with np.load(FIXTURES / "parity" / f"{variant}.npz") as expected:
        errors = {"logits": relative_error(found["logits"], expected[f"{size}/logits"])}
        for level in ("P2", "P3", "P4", "P5", "S2", "S5"):
            values = found[level]
            assert values.shape == tuple(expected[f"{size}/{level}/shape"])
            samples = values.ravel()[sample_indices(values.size)]
            errors[level] = relative_error(samples, expected[f"{size}/{level}/samples"])
    return errors


@pytest.mark.parametrize(("variant", "size"), CASES)
def test_float32_is_within_rounding_of_the_reference(variant, size):
    errors = parity_errors(variant, size, "float32")
    print(keras.config.backend(), "float32", variant, size, {key: f"{error:.1e}" for key, error in errors.items()})
    assert max(errors.values()) < 5e-6


@pytest.mark.parametrize(("variant", "size"), CASES)
def test_float64_equals_the_reference(variant, size, float64):
    errors = parity_errors(variant, size, float64)
    print(keras.config.backend(), "float64", variant, size, {key: f"{error:.1e}" for key, error in errors.items()})
    assert max(errors.values()) < 1e-10


@pytest.mark.parametrize("variant", VARIANTS)
def test_has_the_parameters_of_the_reference(variant):
    builder, token_label_head, _ = VARIANTS[variant]
    model = getattr(keras_dualstream, builder)(token_label_head=token_label_head)
    manifest = read_manifest(variant)
    expected = sum(int(np.prod(manifest["tensors"][name]["shape"])) for name in manifest["trainable"])
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == expected


def cross_entropy(labels):
    """Mean softmax cross-entropy of logits, in their own dtype."""
    one_hot = np.eye(10)[labels]

    def loss(logits):
        log_normalizer = keras.ops.logsumexp(logits, axis=-1)
        picked = keras.ops.sum(logits * keras.ops.convert_to_tensor(one_hot, dtype=logits.dtype), axis=-1)
        return keras.ops.sum(log_normalizer - picked) / len(labels)

    return loss


def train(dtype, steps):
    """Losses of SGD steps, and the norms of the first step's gradients by their PyTorch names."""
    variant = "dualvit_s_no_token_label_10_classes"
    with np.load(FIXTURES / "parity" / f"{variant}_training.npz") as file:
        expected = dict(file)
    model = reference_model(variant, classes=10, drop_path_rate=0.0, input_shape=(224, 224, 3), dtype=dtype)
    names = {id(tensor.variable): tensor.name for tensor in dualvit.checkpoint_tensors(model)}
    gradient_step = gradient_function(model, cross_entropy(expected["labels"]), training=True)
    x, losses, norms = make_images("dev", 4, 224, 224), [], {}
    for _ in range(steps):
        value, gradients = gradient_step(x)
        losses.append(value)
        for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
            norms.setdefault(names[id(weight)], np.linalg.norm(gradient))
            weight.assign(keras.ops.convert_to_numpy(weight) - float(expected["lr"]) * gradient)
    return losses, norms, expected


def test_float64_training_follows_the_reference(float64):
    losses, norms, expected = train(float64, steps=4)
    np.testing.assert_allclose(losses, expected["losses"], rtol=1e-8)
    assert set(norms) == set(expected["grad_names"])
    found = [norms[name] for name in expected["grad_names"]]
    np.testing.assert_allclose(found, expected["grad_norms"], rtol=1e-6)


def test_float32_training_follows_the_reference_at_first():
    losses, _, expected = train("float32", steps=2)
    np.testing.assert_allclose(losses, expected["losses"][:2], rtol=1e-3)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="eager, graph and XLA are TensorFlow's")
def test_tensorflow_eager_graph_and_xla_agree():
    import tensorflow as tf

    model = reference_model("dualvit_s", input_shape=(64, 96, 3))
    x = make_images("dev", 2, 64, 96)
    eager = model(x, training=False)
    for jit_compile in (False, True):
        compiled = tf.function(lambda x: model(x, training=False), jit_compile=jit_compile)(x)
        assert relative_error(compiled, eager) < 5e-6
