"""KerasHub's RetinaNet on the package's pyramids and backbones: it is built, trains, predicts and comes back."""

import math
import sys

import keras
import numpy as np
import pytest
from helpers import RUN_EAGERLY
from helpers import TINY
from helpers import TINY_DFVT
from helpers import TINY_DSNET
from helpers import TINY_TRANSXNET
from helpers import compiled
from helpers import randomize
from helpers import slow_to_compile
from helpers import to_numpy

import keras_dualstream
from keras_dualstream import DSFPN
from keras_dualstream import RetinaNet

keras_hub = pytest.importorskip("keras_hub")

BACKBONES = {
    "DSNetBackbone": TINY_DSNET,
    "DualViTBackbone": TINY,
    "DFvTBackbone": TINY_DFVT,
    "TransXNetBackbone": TINY_TRANSXNET,
}


def backbone(name="DSNetBackbone", size=(128, 128), **options):
    if name == "DSNetBackbone":
        options = {"attention_dropout_rate": 0.0, **options}
    return getattr(keras_dualstream, name)(image_shape=(*size, 3), **BACKBONES[name], **options)


def pyramid(position="lateral_extra", **options):
    return DSFPN(backbone(**options), position, channels=8, attention_dropout_rate=0.0)


def detector(on=None, num_classes=3, **options):
    return RetinaNet(on or pyramid(), num_classes, pre_logits_num_conv_layers=1, **options)


def scenes():
    """Two images with two bright squares and one; their boxes and labels."""
    boxes = np.array([[[8, 8, 40, 40], [64, 32, 128, 96]], [[30, 60, 62, 92], [-1, -1, -1, -1]]], "float32")
    labels = np.array([[0, 2], [1, -1]], "float32")
    images = np.random.default_rng(0).uniform(0, 100, (2, 128, 128, 3)).astype("float32")
    for image, corners in zip(images, boxes.astype(int), strict=True):
        for left, top, right, bottom in corners:
            image[top:bottom, left:right] = 255
    return images, {"boxes": boxes, "labels": labels}


def test_new_heads_are_those_of_the_paper():
    model = RetinaNet(pyramid(), num_classes=3)
    heads = {"box_head": 0.0, "classification_head": math.log(0.01 / 0.99)}
    for name, bias in heads.items():
        head = getattr(model, name)
        np.testing.assert_allclose(to_numpy(head.prediction_layer.bias), bias, rtol=1e-6)
        kernels = [to_numpy(layer.kernel) for layer in (*head.conv_layers, head.prediction_layer)]
        assert len(kernels) == 5
        for kernel in kernels:
            assert abs(kernel.mean()) < 1e-3
            assert abs(kernel.std() - 0.01) < 1e-3
        assert np.abs(kernels[1] - kernels[2]).max() > 0.01
    likely = detector(classification_head_prior_probability=0.2)
    np.testing.assert_allclose(to_numpy(likely.classification_head.prediction_layer.bias), math.log(0.25), rtol=1e-6)


def test_options_are_kerashubs():
    anchors = keras_hub.layers.AnchorGenerator("xywh", 3, 7, num_scales=2, aspect_ratios=[1.0], anchor_size=3.0)
    model = detector(bounding_box_format="xywh", anchor_generator=anchors, name="finder")
    assert isinstance(model, keras_hub.models.RetinaNetObjectDetector)
    assert (model.name, model.bounding_box_format, model.anchor_generator) == ("finder", "xywh", anchors)
    # 16² + 8² + 4² + 2² + 1 positions of two anchors.
    assert model.output["bbox_regression"].shape == (None, 682, 4)
    assert model.output["cls_logits"].shape == (None, 682, 3)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_of_the_package_gets_kerashubs_pyramid_and_comes_back(name):
    encoder = backbone(name, size=(128, 256))
    model = detector(encoder)
    assert model.backbone.image_encoder is encoder
    assert [model.output[name].shape[2] for name in ("bbox_regression", "cls_logits")] == [4, 3]
    restored = type(model).from_config(model.get_config())
    assert type(restored.backbone.image_encoder) is type(encoder)
    assert [weight.shape for weight in restored.weights] == [weight.shape for weight in model.weights]


def test_kerashubs_pyramid_fits_its_anchors_wherever_32_divides_the_size():
    model = detector(backbone(size=(96, 160)))
    x = np.zeros((1, 96, 160, 3), "float32")
    # 12 × 20, 6 × 10, 3 × 5, 2 × 3 and 1 × 2 positions of nine anchors.
    assert [len(level) for level in model.anchor_generator(x).values()] == [9 * n for n in (240, 60, 15, 6, 2)]
    assert compiled(model)(x)["cls_logits"].shape == (1, 9 * 323, 3)


def fit(model, epochs):
    """The loss of every epoch of training on the same two scenes."""
    images, labels = scenes()
    model.compile(keras.optimizers.Adam(1e-3), run_eagerly=RUN_EAGERLY)
    # KerasHub makes a dataset of the arrays and leaves them in their order.
    return model.fit(images, labels, epochs=epochs, batch_size=2, shuffle=False, verbose=0).history["loss"]


PYRAMIDS = {"DS-FPN": pyramid, "KerasHub's FPN": backbone}


@slow_to_compile
@pytest.mark.parametrize("kind", PYRAMIDS)
def test_training_moves_every_weight_and_lowers_the_loss(kind):
    # New heads say so little that a step does not show in every weight.
    model = randomize(detector(PYRAMIDS[kind]()))
    before = [to_numpy(weight).copy() for weight in model.trainable_weights]
    losses = fit(model, epochs=3)
    assert losses[0] > losses[1] > losses[2]
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert np.abs(to_numpy(weight) - old).max() > 0, weight.path


def predict(model):
    images, _ = scenes()
    model.compile(run_eagerly=RUN_EAGERLY)
    return model.predict(images, verbose=0)


@pytest.mark.parametrize("kind", PYRAMIDS)
def test_a_file_gives_back_the_detector_and_its_boxes(kind, tmp_path):
    decoder = keras_hub.layers.NonMaxSuppression("xyxy", True, confidence_threshold=0.3, max_detections=7)
    model = detector(PYRAMIDS[kind](), prediction_decoder=decoder)
    randomize(model.backbone)
    # Half of the anchors say something.
    model.classification_head.prediction_layer.kernel.assign(
        keras.random.normal(model.classification_head.prediction_layer.kernel.shape, stddev=0.5)
    )
    expected = predict(model)
    assert expected["boxes"].shape == (2, 7, 4)
    assert (expected["num_detections"] > 0).all()
    number = expected["num_detections"][0]
    assert (expected["confidence"][0, :number] >= 0.3).all()
    assert set(expected["labels"][0, :number]) <= {0, 1, 2}
    path = tmp_path / "detector.keras"
    model.save(path)
    restored = keras.models.load_model(path)
    assert type(restored.backbone) is type(model.backbone)
    found = predict(restored)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-4, err_msg=name)


def plain_pyramid():
    """Its attributes would not be in a file."""
    inputs = keras.Input((128, 128, 3))
    maps = {f"P{n}": keras.layers.Conv2D(8, 2**n, 2**n)(inputs) for n in range(3, 8)}
    model = keras.Model(inputs, maps)
    model.image_shape, model.min_level, model.max_level = (128, 128, 3), 3, 7
    return model


def plain_model(attribute):
    inputs = x = keras.Input((128, 128, 3))
    maps = {}
    for level, size in {"P3": 8, "P4": 2, "P5": 2}.items():
        x = keras.layers.Conv2D(8, size, size)(x)
        maps[level] = x
    model = keras.Model(inputs, x)
    if attribute:
        model.pyramid_outputs = maps
    return model


def channels_first():
    return keras_dualstream.DSNetBackbone(image_shape=(3, 128, 128), data_format="channels_first", **TINY_DSNET)


MISTAKES = {
    "no pyramid": (lambda: detector(plain_model(False)), "such as `DSFPN`, .* Received: Functional"),
    # Its maps would not be in the config.
    "attribute": (lambda: detector(plain_model(True)), "such as `DSFPN`, .* Received: Functional"),
    "attributes": (lambda: detector(plain_pyramid()), "such as `DSFPN`, .* Received: Functional"),
    "classes": (lambda: detector(num_classes=0), "`num_classes` must be an int of at least 1. Received: num_classes=0"),
    "part of a class": (lambda: detector(num_classes=2.5), "Received: num_classes=2.5"),
    "boxes": (
        lambda: detector(bounding_box_format="rel_xyxy"),
        "must be one of 'xyxy', 'yxyx', .* Received: bounding_box_format='rel_xyxy'",
    ),
    "no number": (
        lambda: detector(classification_head_prior_probability="a"),
        r"must be in \(0, 1\). Received: classification_head_prior_probability='a'",
    ),
    "layout": (lambda: detector(channels_first()), "channels-last .* Received: .* data_format='channels_first'"),
    "layout of DS-FPN": (
        lambda: detector(DSFPN(channels_first(), channels=8)),
        "channels-last .* Received: .* data_format='channels_first'",
    ),
    "size": (
        lambda: detector(backbone("DualViTBackbone", size=(128, 100))),
        r"divisible by 32; `DSFPN\(backbone, position=None\)` .* Received: images of \(128, 100, 3\)",
    ),
    "size on DS-FPN": (
        lambda: detector(pyramid(size=(160, 128))),
        "anchors for P6 of 3x2, where the pyramid has 2x2. .* that 128 divides .* Received: images of 160x128",
    ),
    "prior": (
        lambda: detector(classification_head_prior_probability=1.0),
        r"must be in \(0, 1\). Received: classification_head_prior_probability=1.0",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    make, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        make()


def test_sizes_that_only_some_pyramids_fit_work_there():
    model = detector(DSFPN(backbone("DualViTBackbone", size=(100, 133)), None, channels=8))
    anchors = keras.ops.concatenate(list(model.anchor_generator(np.zeros((1, 100, 133, 3))).values()))
    assert model.output["bbox_regression"].shape[1:] == anchors.shape


def test_without_kerashub_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ImportError, match="needs KerasHub: pip install keras-hub"):
        detector()
