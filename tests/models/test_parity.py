"""Every variant computes what the published PyTorch code computes."""

import keras
import numpy as np
import pytest
from helpers import FIXTURES
from helpers import gradient_function
from helpers import one_backend
from helpers import parameter_counts
from helpers import randomize
from helpers import read_manifest
from helpers import relative_error
from helpers import slow_to_compile
from helpers import tiny_dsnet
from helpers import tiny_transxnet
from reference_weights import make_images
from reference_weights import make_state_dict
from reference_weights import sample_indices

import keras_dualstream
from keras_dualstream.conversion.checkpoint import FAMILIES

pytestmark = pytest.mark.optimized

# By the name of the reference: the builder, its options, and the sizes with known outputs.
VARIANTS = {
    "dfvt_t": ("DFvTT", {}, ["2x224x224", "1x448x448"]),
    "dfvt_s": ("DFvTS", {}, ["2x224x224", "1x448x448"]),
    "dfvt_b": ("DFvTB", {}, ["2x224x224"]),
    "dualvit_s": ("DualViTS", {}, ["2x224x224", "1x256x320"]),
    "dualvit_s_no_token_label": ("DualViTS", {"token_label_head": False}, ["2x224x224", "1x256x320"]),
    "dualvit_b": ("DualViTB", {}, ["2x224x224"]),
    "dualvit_l": ("DualViTL", {}, ["2x224x224"]),
    "transxnet_t": ("TransXNetT", {}, ["2x224x224", "1x192x256"]),
    "transxnet_s": ("TransXNetS", {}, ["2x224x224"]),
    "transxnet_b": ("TransXNetB", {}, ["2x224x224"]),
    "ds_net_tiny": ("DSNetT", {}, ["2x224x224", "1x256x256"]),
    "ds_net_small": ("DSNetS", {}, ["2x224x224", "1x256x256"]),
    "ds_net_base": ("DSNetB", {}, ["2x224x224"]),
}
CASES = [(variant, size) for variant, (_, _, sizes) in VARIANTS.items() for size in sizes]
# The larger variants have the layers of the smallest, more of them: they take minutes to compile and are left to
# `make parity`, like the smallest at one of their two sizes.
SMALLEST = ("dfvt_t", "ds_net_tiny", "dualvit_s", "transxnet_t")


def parameters(quick):
    """The cases as parameters, all but the quick ones marked slow."""
    return [pytest.param(*case, marks=[] if case in quick else [pytest.mark.slow]) for case in CASES]


FIRST_SIZE = [(variant, VARIANTS[variant][2][0]) for variant in SMALLEST]
# In float64 one image that is not square.
FLOAT64 = [*(case for case in FIRST_SIZE if case[0] != "transxnet_t"), ("transxnet_t", "1x192x256")]

TRAINED = ["dfvt_t", "dualvit_s_no_token_label", "ds_net_tiny", "transxnet_t"]
# What else but stochastic depth draws at random in training.
WITHOUT_DROPOUT = {"ds_net_tiny": {"attention_dropout_rate": 0.0}}
TINY_MODELS = {"tiny TransXNet": tiny_transxnet, "tiny DS-Net": tiny_dsnet}


def reference_model(variant, manifest=None, **options):
    """The variant with the reference's weights, for normalised images, giving logits."""
    builder, head_options, _ = VARIANTS[variant]
    model = getattr(keras_dualstream, builder)(
        include_preprocessing=False, classifier_activation=None, **head_options, **options
    )
    state_dict = make_state_dict(read_manifest(manifest or variant), "dev")
    keras_dualstream.conversion.load_checkpoint(model, state_dict)
    return model


def reference_outputs(backbone):
    """The maps and tokens of a backbone by the reference's names."""
    outputs = {**backbone.pyramid_outputs, **getattr(backbone, "semantic_outputs", {})}
    if isinstance(backbone, keras_dualstream.DFvTBackbone):
        third_stage = backbone.get_layer(f"stage3_block{backbone.depths[2]}").output
        outputs.update(P5=third_stage, P5_last=outputs["P5"])
    return outputs


def parity_errors(variant, size, dtype):
    """The relative error of the logits and of every map and token that the reference has."""
    batch, height, width = map(int, size.split("x"))
    model = reference_model(variant, input_shape=(height, width, 3), dtype=dtype)
    outputs = reference_outputs(model.backbone)
    with np.load(FIXTURES / "parity" / f"{variant}.npz") as file:
        expected = {key.removeprefix(f"{size}/"): file[key] for key in file if key.startswith(f"{size}/")}
    outputs = {level: output for level, output in outputs.items() if f"{level}/samples" in expected}
    assert {"P2", "P3", "P4", "P5"} <= set(outputs)
    found = keras.Model(model.input, {"logits": model.output, **outputs}).predict(
        make_images("dev", batch, height, width), verbose=0
    )
    errors = {"logits": relative_error(found["logits"], expected["logits"])}
    for level in outputs:
        values = found[level]
        assert values.shape == tuple(expected[f"{level}/shape"])
        errors[level] = relative_error(values.ravel()[sample_indices(values.size)], expected[f"{level}/samples"])
    return errors


@pytest.mark.parametrize(("variant", "size"), parameters(FIRST_SIZE))
def test_float32_is_within_rounding_of_the_reference(variant, size):
    errors = parity_errors(variant, size, "float32")
    print(keras.config.backend(), "float32", variant, size, {key: f"{error:.1e}" for key, error in errors.items()})
    assert max(errors.values()) < 5e-6


@pytest.mark.parametrize(("variant", "size"), parameters(FLOAT64))
def test_float64_equals_the_reference(variant, size, float64):
    errors = parity_errors(variant, size, float64)
    print(keras.config.backend(), "float64", variant, size, {key: f"{error:.1e}" for key, error in errors.items()})
    assert max(errors.values()) < 1e-10


@one_backend
@pytest.mark.parametrize("variant", VARIANTS)
def test_has_the_parameters_of_the_reference(variant):
    builder, head_options, _ = VARIANTS[variant]
    manifest = read_manifest(variant)
    expected = sum(int(np.prod(manifest["tensors"][name]["shape"])) for name in manifest["trainable"])
    assert parameter_counts(builder, **head_options)[1] == expected


def cross_entropy(labels):
    """Mean softmax cross-entropy of logits, in their own dtype."""
    one_hot = np.eye(10)[labels]

    def loss(logits):
        log_normalizer = keras.ops.logsumexp(logits, axis=-1)
        picked = keras.ops.sum(logits * keras.ops.convert_to_tensor(one_hot, dtype=logits.dtype), axis=-1)
        return keras.ops.sum(log_normalizer - picked) / len(labels)

    return loss


def train(variant, dtype, steps):
    """Losses of SGD steps, and the norms of the first step's gradients by their PyTorch names."""
    with np.load(FIXTURES / "parity" / f"{variant}_10_classes_training.npz") as file:
        expected = dict(file)
    model = reference_model(
        variant,
        f"{variant}_10_classes",
        classes=10,
        drop_path_rate=0.0,
        input_shape=(224, 224, 3),
        dtype=dtype,
        **WITHOUT_DROPOUT.get(variant, {}),
    )
    tensors = FAMILIES[type(model.backbone).__name__].checkpoint_tensors(model)
    names = {id(tensor.variable): tensor.name for tensor in tensors}
    loss = cross_entropy(expected["labels"])
    gradient_step = gradient_function(model, loss, training=True)
    x, losses, norms = make_images("dev", 4, 224, 224), [], {}
    for step in range(steps):
        if step == steps - 1 and keras.config.backend() != "jax":
            # On JAX the loss alone would be a program more to compile.
            losses.append(float(loss(model(x, training=True))))
            break
        value, gradients = gradient_step(x)
        losses.append(value)
        for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
            norms.setdefault(names[id(weight)], np.linalg.norm(gradient))
            weight.assign(keras.ops.convert_to_numpy(weight) - float(expected["lr"]) * gradient)
    return losses, norms, expected


# JAX compiles a step of the others for one to two minutes: the smallest has four steps in the suite, they two on the
# other backends, and `make parity` has all four everywhere.
@pytest.mark.parametrize(
    ("variant", "steps"),
    [
        (TRAINED[0], 4),
        *(pytest.param(variant, 2, marks=slow_to_compile) for variant in TRAINED[1:]),
        *(pytest.param(variant, 4, marks=pytest.mark.slow) for variant in TRAINED[1:]),
    ],
)
def test_float64_training_follows_the_reference(variant, steps, float64):
    losses, norms, expected = train(variant, float64, steps)
    print(keras.config.backend(), variant, losses)
    np.testing.assert_allclose(losses, expected["losses"][:steps], rtol=1e-8)
    assert set(norms) == set(expected["grad_names"])
    found = [norms[name] for name in expected["grad_names"]]
    # A bias before a batch normalisation has no gradient; what is found and expected there is rounding, 1e-15.
    np.testing.assert_allclose(found, expected["grad_norms"], rtol=1e-6, atol=1e-14 * expected["grad_norms"].max())


@pytest.mark.parametrize(
    "variant", [TRAINED[0], *(pytest.param(variant, marks=pytest.mark.slow) for variant in TRAINED[1:])]
)
def test_float32_training_follows_the_reference_at_first(variant):
    losses, _, expected = train(variant, "float32", steps=2)
    np.testing.assert_allclose(losses, expected["losses"][:2], rtol=1e-3)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="eager, graph and XLA are TensorFlow's")
@pytest.mark.parametrize("variant", [pytest.param("dualvit_s", marks=pytest.mark.slow), *TINY_MODELS])
def test_tensorflow_eager_graph_and_xla_agree(variant):
    import tensorflow as tf

    if variant in VARIANTS:
        model = reference_model(variant, input_shape=(64, 96, 3))
    else:
        make = TINY_MODELS[variant]
        model = randomize(make((64, 96, 3), include_preprocessing=False, classifier_activation=None))
    x = make_images("dev", 2, 64, 96)
    eager = model(x, training=False)
    for jit_compile in (False, True):
        compiled = tf.function(lambda x: model(x, training=False), jit_compile=jit_compile)(x)
        assert relative_error(compiled, eager) < 5e-6
