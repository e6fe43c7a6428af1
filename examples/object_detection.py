"""Trains two detectors of handwritten digits on photographs, one on DS-FPN and one on the plain feature pyramid.

    python examples/object_detection.py                                   # nothing to download
    python examples/object_detection.py --backend tensorflow --epochs 10

Every scene is a random crop of a photograph that scikit-image or scikit-learn brings along, with up to five of
scikit-learn's handwritten digits at random places, of random size and colour; the boxes are those of the digits'
pixels. Test scenes are made of other photographs and other digits than the training scenes. Both detectors are
KerasHub's RetinaNet on the same small DFvT, trained on the same scenes. Each is saved, loaded in a fresh process on
TensorFlow and compared there with the one that was trained; `detections.png` shows what they find.
"""

import argparse
import contextlib
import importlib.util
import json
import math
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
    # On a core a training step of 16 scenes takes PyTorch 1.0 s, TensorFlow 1.6 s and JAX 3.4 s, and before the first
    # one TensorFlow traces for 1 and JAX compiles for 3 minutes.
    default_backend = os.environ.get("KERAS_BACKEND", "torch")
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


def make_output_folder(path):
    """The folder, proved to be writable before the training depends on it."""
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Problem(f"--output {path!r} is not a folder that can be written to: {error.strerror}.") from error
    return folder


def check_packages(backend):
    """What the last steps need is missed before the first one."""
    packages = {"keras_hub": "keras-hub", "faster_coco_eval": "faster-coco-eval", "matplotlib": "matplotlib"}
    packages |= {"sklearn": "scikit-learn", "skimage": "scikit-image", "PIL": "pillow"}
    for package, install in {backend: backend, "tensorflow": "tensorflow", **packages}.items():
        if importlib.util.find_spec(package) is None:
            raise Problem(f"This example needs {install}: pip install {install}")


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

    shortest = min(photo.shape[:2])
    side = rng.integers(min(size, shortest), shortest + 1)
    top, left = (rng.integers(0, length - side + 1) for length in photo.shape[:2])
    crop = Image.fromarray(photo[top : top + side, left : left + side]).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(crop, "float32")[:, :: rng.choice((-1, 1))] * rng.uniform(0.3, 0.7)


def place(scene, scan, others, rng, tries=20):
    """Paints a scan brightly into the scene where it overlaps no other; its box, or `None` if no place was found."""
    import numpy as np
    from PIL import Image

    size = len(scene)
    side = int(size * rng.uniform(0.16, 0.5))
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


def build(position, size):
    """A RetinaNet on a small DFvT; its pyramid and heads are narrower than usual, since its objects are simple."""
    import keras
    import keras_hub

    import keras_dualstream

    keras.utils.set_random_seed(0)
    backbone = keras_dualstream.DFvTBackbone(
        embed_dim=32, num_heads=(1, 2, 4, 8), window_size=4, image_shape=(size, size, 3)
    )
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
        # Group normalisation, as these heads start from nothing.
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
        # On JAX the trainer keeps the variables to itself during an epoch, until it is asked for them.
        getattr(detector, "jax_state_sync", lambda: None)()
        detector.optimizer.learning_rate = float(decay(int(detector.optimizer.iterations)))

    # Set by a callback: of a schedule in the optimizer, TensorFlow would trace a copy for every weight.
    schedule = keras.callbacks.LambdaCallback(on_train_batch_begin=set_learning_rate)
    optimizer = keras.optimizers.AdamW(learning_rate, weight_decay=0.02, clipnorm=1.0)
    # With its variables made before, TensorFlow traces the first step once instead of twice.
    optimizer.build(detector.trainable_variables)
    # KerasHub's loss of the boxes is quadratic for small offsets, and then has next to no gradient.
    detector.compile(optimizer, box_loss=keras.losses.MeanAbsoluteError(reduction="sum"))
    detector.fit(
        images.astype("float32"),
        labels,
        batch_size=batch_size,
        epochs=epochs,
        callbacks=[schedule],
        shuffle=False,
        verbose=2,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


def average_precision(detections, truth):
    """COCO's mAP, over IoUs from 0.5 to 0.95, and mAP50 of what `predict` returned."""
    from faster_coco_eval import COCO
    from faster_coco_eval import COCOeval_faster

    annotations = [
        dict(id=number, image_id=image, category_id=int(label), bbox=corner_and_size(box), area=area(box), iscrowd=0)
        for number, (image, box, label) in enumerate(objects(truth["boxes"], truth["labels"], truth["labels"] >= 0), 1)
    ]
    found = detections["confidence"] > 0
    scores = detections["confidence"][found]
    results = [
        dict(image_id=image, category_id=int(label), bbox=corner_and_size(box), score=float(score))
        for (image, box, label), score in zip(
            objects(detections["boxes"], detections["labels"], found), scores, strict=True
        )
    ]
    if not results:
        return 0.0, 0.0
    categories = [dict(id=digit, name=str(digit)) for digit in range(10)]
    images = [dict(id=image) for image in range(len(truth["boxes"]))]
    with contextlib.redirect_stdout(None):
        coco = COCO(dict(images=images, annotations=annotations, categories=categories))
        evaluation = COCOeval_faster(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def objects(boxes, labels, chosen):
    """The chosen `(image, box, label)`, image by image."""
    import numpy as np

    return [(int(image), boxes[image, index], labels[image, index]) for image, index in np.argwhere(chosen)]


def corner_and_size(box):
    left, top, right, bottom = map(float, box)
    return [left, top, right - left, bottom - top]


def area(box):
    _, _, width, height = corner_and_size(box)
    return width * height


def run(arguments, output):
    """Trains, evaluates and saves both detectors; the rows of the table and the detections, by pyramid."""
    import keras
    import numpy as np

    (train_photos, test_photos), (train_digits, test_digits) = load_photographs(), load_scans()
    size = arguments.image_size
    images, labels = compose_scenes(arguments.scenes, size, train_photos, *train_digits, seed=0)
    test_images, truth = compose_scenes(arguments.test_scenes, size, test_photos, *test_digits, seed=1)
    test_images = test_images.astype("float32")
    rows, detections = {}, {}
    for step, (name, position) in enumerate(PYRAMIDS.items(), 1):
        heading(step, f"Training RetinaNet on the {name}")
        detector = build(position, size)
        start = time.perf_counter()
        train(detector, images, labels, arguments.epochs)
        trained = time.perf_counter()
        detector.predict(test_images[:32], verbose=0)
        warm = time.perf_counter()
        detections[name] = detector.predict(test_images, verbose=0)
        speed = len(test_images) / (time.perf_counter() - warm)
        precision, precision50 = average_precision(detections[name], truth)
        parameters = sum(int(np.prod(weight.shape)) for weight in detector.trainable_weights)
        rows[name] = [trained - start, parameters, speed, precision, precision50]
        detector.save(file_of(output, name))
        outputs = keras.tree.map_structure(keras.ops.convert_to_numpy, detector(test_images[:8], training=False))
        np.savez(file_of(output, name).with_suffix(".npz"), images=test_images[:8], **outputs)
        print(f"  mAP {precision:.1%}, mAP50 {precision50:.1%}", flush=True)
    return rows, test_images, truth, detections


def file_of(output, name):
    return output / f"{name.lower().replace(' ', '_').replace('-', '_')}.keras"


def heading(step, text):
    print(f"\n{step}/4 {text}", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# The saved detectors, in a process of its own that has nothing of the one that trained them.


def check(output):
    """Loads the detectors and prints as JSON how far the outputs of each are from the trained one's, and its GMACs."""
    import keras
    import keras_hub  # noqa: F401  Makes its layers known to Keras.
    import numpy as np

    import keras_dualstream  # noqa: F401

    found = {}
    for name in PYRAMIDS:
        detector = keras.models.load_model(file_of(output, name), compile=False)
        with np.load(file_of(output, name).with_suffix(".npz")) as expected:
            outputs = detector(expected["images"], training=False)
            difference = max(float(np.abs(outputs[key] - expected[key]).max()) for key in outputs)
        found[name] = difference, giga_macs(detector)
    print(json.dumps(found))


def giga_macs(model):
    """Billions of multiplications of one image, counted by TensorFlow's profiler, and those of `Einsum` beside it."""
    import tensorflow as tf
    from tensorflow.python.profiler.model_analyzer import profile
    from tensorflow.python.profiler.option_builder import ProfileOptionBuilder

    signature = tf.TensorSpec((1, *model.input_shape[1:]), "float32")
    graph = tf.function(lambda x: model(x, training=False)).get_concrete_function(signature).graph
    options = ProfileOptionBuilder(ProfileOptionBuilder.float_operation()).with_empty_output()
    options = options.with_accounted_types(["MatMul|BatchMatMul.*|Conv2D|DepthwiseConv2dNative"]).build()
    counted = profile(graph, options=options).total_float_ops / 2
    return (counted + sum(einsum_macs(op) for op in graph.get_operations() if op.type == "Einsum")) / 1e9


def einsum_macs(op):
    """The product of the sizes of all indices."""
    operands = op.get_attr("equation").decode().partition("->")[0].split(",")
    sizes = {}
    for indices, x in zip(operands, op.inputs, strict=True):
        sizes.update(zip(indices, x.shape, strict=True))
    return math.prod(sizes.values())


def check_in_fresh_process(output):
    """The GMACs of each detector, once its file is proved to agree with it."""
    heading(3, "Loading both in a fresh process on TensorFlow, and comparing them with the trained ones")
    command = [sys.executable, __file__, "--check-only", "--backend", "tensorflow", "--output", str(output)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise Problem(f"The saved detectors cannot be loaded:\n{process.stderr}")
    found = json.loads(process.stdout.splitlines()[-1])
    for name, (difference, _) in found.items():
        print(f"  {name}: logits and offsets differ by at most {difference:.1e}", flush=True)
        if not difference <= TOLERANCE:
            raise Problem(f"The file of {name} disagrees with the detector by {difference:.1e}, more than {TOLERANCE}.")
    return {name: macs for name, (_, macs) in found.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Figure


def draw(path, images, truth, detections, rows, threshold=0.4, columns=6):
    """Test scenes with what each detector finds, and the digits that it misses."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(columns, len(images))
    figure = plt.figure(figsize=(2.6 * columns, 6.4), layout="constrained")
    for part, (name, found) in zip(figure.subfigures(len(detections), 1), detections.items(), strict=True):
        part.suptitle(f"RetinaNet on {name}: mAP50 {rows[name][-1]:.0%}", fontweight="bold")
        for image, axis in enumerate(part.subplots(1, columns, squeeze=False)[0]):
            axis.imshow(images[image] / 255)
            axis.axis("off")
            chosen = found["confidence"][image] >= threshold
            boxes, labels, scores = (found[key][image][chosen] for key in ("boxes", "labels", "confidence"))
            real = truth["labels"][image] >= 0
            draw_scene(axis, boxes, labels, scores, truth["boxes"][image][real], truth["labels"][image][real])
    figure.text(0.5, -0.03, "green: right digit and place; red: wrong; dashed: missed", ha="center")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def draw_scene(axis, boxes, labels, scores, true_boxes, true_labels):
    """Boxes in green where one of the true boxes has this label and an IoU of 0.5, else in red."""
    hit = iou(boxes, true_boxes) >= 0.5
    right = hit & (labels[:, None] == true_labels[None])
    for box, label, score, good in zip(boxes, labels, scores, right.any(axis=1), strict=True):
        colour = "#3ddc84" if good else "#ff5252"
        outline(axis, box, colour)
        text = dict(color="black", fontsize=8, va="bottom", clip_on=True)
        background = dict(facecolor=colour, edgecolor="none", pad=0.8)
        axis.text(box[0], max(box[1] - 1, 10), f"{int(label)}  {score:.0%}", bbox=background, **text)
    for box in true_boxes[~right.any(axis=0)]:
        outline(axis, box, "white", linestyle="--")


def outline(axis, box, colour, **options):
    from matplotlib.patches import Rectangle

    left, top, width, height = corner_and_size(box)
    axis.add_patch(Rectangle((left, top), width, height, edgecolor=colour, fill=False, linewidth=1.8, **options))


def iou(boxes, others):
    """Intersection over union of every box with every other, `(boxes, others)`."""
    import numpy as np

    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(part[:, 2:] - part[:, :2], axis=-1) for part in (boxes, others)]
    return common / (areas[0][:, None] + areas[1][None] - common)


# ---------------------------------------------------------------------------------------------------------------------


def print_table(rows, macs):
    header = ("pyramid", "parameters", "GMACs", "images/s", "mAP", "mAP50", "training")
    print(("\n{:<10} {:>11} {:>6} {:>9} {:>6} {:>6} {:>9}").format(*header))
    for name, (seconds, parameters, speed, precision, precision50) in rows.items():
        cells = f"{name:<10} {parameters:>11,} {macs[name]:>6.2f} {speed:>9.1f} {precision:>6.1%} {precision50:>6.1%}"
        print(f"{cells} {seconds:>7.0f} s")


def main(argv=None):
    """Runs the example; returns the exit status."""
    arguments = parse_arguments(argv)
    os.environ["KERAS_BACKEND"] = arguments.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    start = time.perf_counter()
    try:
        output = make_output_folder(arguments.output)
        if arguments.check_only:
            check(output)
            return 0
        check_packages(arguments.backend)
        rows, images, truth, detections = run(arguments, output)
        macs = check_in_fresh_process(output)
        heading(4, "Drawing")
        draw(output / "detections.png", images, truth, detections, rows)
    except Problem as problem:
        print(f"{pathlib.Path(__file__).name}: {problem}", file=sys.stderr)
        return 2
    print_table(rows, macs)
    print(f"Detectors and detections.png in {output}/; {time.perf_counter() - start:.0f} s in all.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
