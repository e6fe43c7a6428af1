"""Trains two detectors of handwritten digits on photographs, one on DS-FPN and one on the plain feature pyramid.

    python examples/object_detection.py                  # nothing to download
    python examples/object_detection.py --backend torch --epochs 40

Every scene is a random crop of a photograph that scikit-image or scikit-learn brings along, with up to five of
scikit-learn's handwritten digits at random places, of random size and colour; the boxes are those of the digits'
pixels. Test scenes are made of other photographs and other digits than the training scenes. Both detectors are
KerasHub's RetinaNet on the same DS-Net, trained on the same scenes. Each is saved, loaded in a fresh process on
TensorFlow, compared with the one that was trained and measured there; `detections.png` shows what they find.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time

PYRAMIDS = {"plain FPN": None, "DS-FPN": "lateral_extra"}
BOX_FORMAT = "xyxy"
MOST_DIGITS = 5
TOLERANCE = 1e-3


class Problem(Exception):
    """Something the user can mend; its text is the whole message."""


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    backends = ("tensorflow", "jax", "torch")
    default_backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    parser.add_argument("--backend", choices=backends, default=default_backend, help="what Keras runs on")
    parser.add_argument("--image-size", type=int, default=128, help="height and width of the scenes, divisible by 128")
    parser.add_argument("--scenes", type=int, default=1600, help="scenes to train on")
    parser.add_argument("--test-scenes", type=int, default=200, help="scenes to evaluate on")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each training")
    parser.add_argument("--output", default="output", help="folder for the detectors and the figure")
    parser.add_argument("--check-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    for name, least in {"epochs": 1, "image_size": 128, "scenes": 1, "test_scenes": 1}.items():
        value = getattr(arguments, name)
        if value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}. Received: {value}")
    if arguments.image_size % 128:
        parser.error(f"--image-size must be divisible by 128. Received: {arguments.image_size}")
    return arguments


# ---------------------------------------------------------------------------------------------------------------------
# Scenes


def load_photographs():
    """Photographs to train on and others to test on, arrays `(height, width, 3)` of uint8, from installed packages."""
    import numpy as np
    from skimage import data
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    motorcycle, _, _ = data.stereo_motorcycle()
    train = [data.astronaut(), data.coffee(), data.rocket(), data.chelsea(), data.grass(), data.camera(), china]
    test = [flower, motorcycle, data.brick(), data.coins()]
    return [[photo if photo.ndim == 3 else np.stack([photo] * 3, axis=-1) for photo in part] for part in (train, test)]


def load_scans():
    """Handwritten digits to train on and others to test on, each part `(scans, labels)` with scans in [0, 1]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans, labels = (digits.images / 16).astype("float32"), digits.target
    half = 3 * len(labels) // 4
    return (scans[:half], labels[:half]), (scans[half:], labels[half:])


def compose_scenes(number, size, photos, scans, labels, seed):
    """Scenes with their boxes.

    Returns:
        Images `(number, size, size, 3)` of uint8 and a dict of float32 arrays:
        `"boxes"` `(number, MOST_DIGITS, 4)` and `"labels"` `(number,
        MOST_DIGITS)`, -1 where a scene has fewer.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    images = np.empty((number, size, size, 3), "uint8")
    boxes = np.full((number, MOST_DIGITS, 4), -1, "float32")
    classes = np.full((number, MOST_DIGITS), -1, "float32")
    for i in range(number):
        scene = random_crop(photos[rng.integers(len(photos))], size, rng)
        for j in range(rng.integers(1, MOST_DIGITS + 1)):
            index = rng.integers(len(scans))
            box = place(scene, scans[index], boxes[i], rng)
            if box is not None:
                boxes[i, j], classes[i, j] = box, labels[index]
        images[i] = scene.round()
    return images, {"boxes": boxes, "labels": classes}


def random_crop(photo, size, rng):
    """A square of a photograph, of random size, place and brightness, resized to `size` and mirrored at times."""
    import numpy as np
    from PIL import Image

    side = rng.integers(size, min(photo.shape[:2]) + 1)
    top, left = (rng.integers(0, length - side + 1) for length in photo.shape[:2])
    crop = Image.fromarray(photo[top : top + side, left : left + side]).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(crop, "float32")[:, :: rng.choice((-1, 1))] * rng.uniform(0.3, 0.7)


def place(scene, scan, others, rng, tries=20, lo=0.16, hi=0.5):
    """Paints a scan into the scene where it overlaps no other; its box, or `None` if no place was found."""
    import numpy as np
    from PIL import Image

    size = len(scene)
    side = int(size * rng.uniform(lo, hi))
    cover = np.asarray(Image.fromarray(scan).resize((side, side), Image.Resampling.BICUBIC)).clip(0, 1)
    rows, columns = (np.flatnonzero((cover > 0.5).any(axis=axis)) for axis in (1, 0))
    colour = rng.uniform(170, 255, 3)
    inner = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    for _ in range(tries):
        left, top = rng.integers(0, size - side + 1, 2)
        box = inner + [left, top, left, top]
        if not overlaps(box, others):
            part = scene[top : top + side, left : left + side]
            part += cover[..., None] * (colour - part)
            return box
    return None


def overlaps(box, others):
    apart = (box[:2] >= others[:, 2:]) | (others[:, :2] >= box[2:])
    return not apart.any(axis=1).all()


# ---------------------------------------------------------------------------------------------------------------------
# Detector


def make_backbone(size):
    import keras

    import keras_dualstream

    keras.utils.set_random_seed(0)
    return keras_dualstream.DFvTBackbone(
        embed_dim=32, num_heads=(1, 2, 4, 8), window_size=4, image_shape=(size, size, 3)
    )


def build(position, size, weights=None):
    """A RetinaNet on a small DS-Net, with half of the usual layers and sizes since its objects are simple and small."""
    import keras
    import keras_hub

    import keras_dualstream

    keras.utils.set_random_seed(0)
    backbone = make_backbone(size)
    if weights:
        backbone.load_weights(weights)
    pyramid = keras_dualstream.DSFPN(backbone, position, channels=64)
    anchors = keras_hub.layers.AnchorGenerator(
        BOX_FORMAT, min_level=3, max_level=7, num_scales=3, aspect_ratios=[1.0, 1.6], anchor_size=size / 64
    )
    return keras_dualstream.RetinaNet(
        pyramid,
        num_classes=10,
        bounding_box_format=BOX_FORMAT,
        anchor_generator=anchors,
        pre_logits_num_conv_layers=1,
        use_prediction_head_norm=True,
        # Average precision counts the uncertain detections too.
        prediction_decoder=keras_hub.layers.NonMaxSuppression(
            BOX_FORMAT, from_logits=True, confidence_threshold=0.05, max_detections=20
        ),
    )


def train(detector, images, labels, epochs, learning_rate=1.5e-3, batch_size=16):
    """Compiles with AdamW under a warm-up and a cosine decay, and fits."""
    import keras

    steps = epochs * -(-len(images) // batch_size)
    decay = keras.optimizers.schedules.CosineDecay(
        0.0, max(steps - steps // 10, 1), warmup_target=learning_rate, warmup_steps=steps // 10
    )

    def set_learning_rate(_, logs=None):
        detector.optimizer.learning_rate = float(decay(int(detector.optimizer.iterations)))

    # Set by a callback: of a schedule in the optimizer, TensorFlow would trace a copy for every weight.
    schedule = keras.callbacks.LambdaCallback(on_train_batch_begin=set_learning_rate)
    optimizer = keras.optimizers.AdamW(learning_rate, weight_decay=0.02, clipnorm=1.0)
    # With its variables made before, TensorFlow traces the first step once instead of twice.
    optimizer.build(detector.trainable_variables)
    # KerasHub's loss of the boxes is quadratic, and as good as nothing for the small offsets of well matched anchors.
    detector.compile(optimizer, box_loss=keras.losses.MeanAbsoluteError(reduction="sum"))
    detector.fit(images.astype("float32"), labels, batch_size=batch_size, epochs=epochs, callbacks=[schedule], shuffle=False, verbose=2)


def average_precision(detections, truth):
    """COCO's mAP (mean over IoU 0.5 to 0.95) and mAP50 of what `predict` returned."""
    import numpy as np
    from faster_coco_eval import COCO
    from faster_coco_eval import COCOeval_faster

    annotations, results = [], []
    for image, (boxes, labels) in enumerate(zip(truth["boxes"], truth["labels"], strict=True), 1):
        for box, label in zip(boxes[labels >= 0], labels[labels >= 0], strict=True):
            left, top, width, height = box[0], box[1], *(box[2:] - box[:2])
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=int(label),
                    bbox=[float(left), float(top), float(width), float(height)],
                    area=float(width * height),
                    iscrowd=0,
                )
            )
    for image, number in enumerate(detections["num_detections"]):
        for box, label, score in zip(
            *(detections[name][image][:number] for name in ("boxes", "labels", "confidence")), strict=True
        ):
            corners = np.concatenate([box[:2], box[2:] - box[:2]])
            results.append(
                dict(
                    image_id=image + 1, category_id=int(label), bbox=[float(x) for x in corners], score=float(score)
                )
            )
    categories = [dict(id=digit, name=str(digit)) for digit in range(10)]
    images = [dict(id=image + 1) for image in range(len(truth["boxes"]))]
    coco = COCO(dict(images=images, annotations=annotations, categories=categories))
    with contextlib.redirect_stdout(None):
        evaluation = COCOeval_faster(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0], evaluation.stats[1]
