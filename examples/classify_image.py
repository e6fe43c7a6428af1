"""Prints the five most probable classes of each image, and can draw them.

python examples/classify_image.py photo.jpg                          # TransXNetT with its published weights
python examples/classify_image.py *.jpg --model DFvTB --draw top5.png
python examples/classify_image.py cat.png --model DSNetS --weights ds_net_s_224_pytorch
python examples/classify_image.py cat.png --model DualViTS --weights my_preset/ --classes 10
"""

import argparse
import importlib.util
import inspect
import os
import pathlib
import sys


class Problem(Exception):
    """Something the user can mend; its text is the whole message."""


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--model", default="TransXNetT", help="a builder of keras_dualstream (TransXNetT)")
    weights_help = "what the builder's `weights` takes: imagenet (the default), a preset, a file, a folder, an address"
    parser.add_argument("--weights", default="imagenet", help=weights_help)
    parser.add_argument("--classes", type=int, default=1000, help="classes of the weights (1000)")
    parser.add_argument("--top", type=int, default=5, help="how many classes to show (5)")
    parser.add_argument("--draw", metavar="FILE", help="draws the images and their classes into this file")
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), help="what Keras runs on")
    arguments = parser.parse_args(argv)
    if arguments.top < 1:
        parser.error(f"--top must be at least 1. Received: {arguments.top}")
    return arguments


def check_packages(draw):
    """What the last step needs is missed before the first one."""
    for package, install in {"PIL": "pillow", **({"matplotlib": "matplotlib"} if draw else {})}.items():
        if importlib.util.find_spec(package) is None:
            raise Problem(f"This example needs {install}: pip install {install}")


def read_images(paths):
    """The images as RGB arrays of their own sizes."""
    import keras

    images = []
    for path in paths:
        try:
            images.append(keras.utils.img_to_array(keras.utils.load_img(path), data_format="channels_last"))
        except OSError as error:
            raise Problem(f"{path!r} is no image that can be read: {error}") from error
    return images


def build(name, weights, classes):
    """The classifier with its weights."""
    import keras_dualstream

    builder = getattr(keras_dualstream, name, None)
    if not inspect.isfunction(builder) or "include_top" not in inspect.signature(builder).parameters:
        raise Problem(f"--model must be a builder of keras_dualstream, such as DualViTS. Received: {name!r}")
    try:
        return builder(weights=weights, classes=classes)
    except (ImportError, OSError, ValueError) as error:
        raise Problem(str(error)) from error


def preset_of(name, weights):
    """Whose preprocessing and class names the weights have; a file brings none, and gets those of the builder."""
    alone = weights == "imagenet" or weights.startswith(("http://", "https://")) or os.path.isfile(weights)
    return name if alone else weights


def classify(arguments):
    """The images, cut to what the model sees, and for each the list of `(identifier, class, probability)`."""
    import keras
    import numpy as np

    import keras_dualstream

    images = read_images(arguments.images)
    model = build(arguments.model, arguments.weights, arguments.classes)
    preset = preset_of(arguments.model, arguments.weights)
    images = keras_dualstream.preprocess_input(images, preset, data_format="channels_last")
    first = keras.config.image_data_format() == "channels_first"
    probabilities = model.predict(np.moveaxis(images, -1, 1) if first else images, verbose=0)
    try:
        return images, keras_dualstream.decode_predictions(probabilities, arguments.top, preset)
    except (OSError, ValueError) as error:
        print(f"Classes have no names here. {error}\n", file=sys.stderr)
        best = probabilities.argsort(axis=1)[:, ::-1][:, : arguments.top]
        names = [[(str(i), f"class {i}", row[i]) for i in rank] for row, rank in zip(probabilities, best, strict=True)]
        return images, names


def draw(path, images, decoded, titles):
    """Each image beside the bars of its classes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(images), 2, figsize=(9, 3 * len(images)), squeeze=False, layout="constrained")
    for (left, right), image, classes, title in zip(axes, images, decoded, titles, strict=True):
        left.imshow(image / 255)
        left.set_title(title)
        left.axis("off")
        names, scores = ([item[i] for item in classes[::-1]] for i in (1, 2))
        bars = right.barh(range(len(names)), scores, color="#33658a")
        right.bar_label(bars, [f" {score:.1%}" for score in scores])
        right.set_yticks(range(len(names)), names)
        right.set(xlim=(0, 1.15), xlabel="probability")
        right.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise Problem(f"--draw {path!r} cannot be written: {error}") from error
    finally:
        plt.close(figure)


def main(argv=None):
    """Runs the example; returns the exit status."""
    arguments = parse_arguments(argv)
    if arguments.backend:
        os.environ["KERAS_BACKEND"] = arguments.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        check_packages(arguments.draw)
        images, decoded = classify(arguments)
        for path, classes in zip(arguments.images, decoded, strict=True):
            print(path)
            for _, name, score in classes:
                print(f"  {score:6.1%}  {name}")
        if arguments.draw:
            draw(arguments.draw, images, decoded, [pathlib.Path(path).name for path in arguments.images])
            print(f"Drawn into {arguments.draw}.")
    except Problem as problem:
        print(f"{pathlib.Path(__file__).name}: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
