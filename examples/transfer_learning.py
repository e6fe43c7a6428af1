"""Trains a backbone on half of the classes, transfers it to the other half, and exports the result.

    python examples/transfer_learning.py                             # handwritten digits, nothing to download
    python examples/transfer_learning.py --data photos/ --epochs 20  # one sub-folder per class
    python examples/transfer_learning.py --data tfds:tf_flowers --backend jax

The first half of the classes trains a whole model. Its backbone is then frozen under a new head that learns the second
half from a few labelled images each, beside the same head on an untrained frozen backbone; then all of it is
fine-tuned. The result is exported as SavedModel and TFLite, both are loaded in a fresh process and compared with the
model, and `figure.png` shows how it went.
"""

import argparse
import contextlib
import importlib.util
import inspect
import json
import os
import pathlib
import subprocess
import sys
import time

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif"}
TOLERANCE = 1e-4


class Problem(Exception):
    """Something the user can mend; its text is the whole message."""


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    backends = ("tensorflow", "jax", "torch")
    default_backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    parser.add_argument("--backend", choices=backends, default=default_backend, help="what Keras runs on")
    parser.add_argument("--model", default="DualViTS", help="a builder of keras_dualstream")
    parser.add_argument("--data", default="digits", help="'digits', a folder with a sub-folder per class, or tfds:NAME")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of the first training")
    parser.add_argument("--image-size", type=int, default=48, help="images are resized to this height and width")
    parser.add_argument("--images-per-class", type=int, help="use at most this many images of each class")
    parser.add_argument("--labelled", type=int, default=20, help="images of each new class that the transfer may see")
    parser.add_argument("--output", default="output", help="folder for weights, exports and the figure")
    parser.add_argument("--export-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    for name, least in {"epochs": 1, "image_size": 1, "images_per_class": 5, "labelled": 1}.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}. Received: {value}")
    return arguments


def make_output_folder(path):
    """The folder, proved to be writable before an hour of training depends on it."""
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
    """What the last steps need is missed before the first one, not an hour later."""
    packages = {"matplotlib": "matplotlib", "ai_edge_litert": "ai-edge-litert", "sklearn": "scikit-learn"}
    for package, install in {backend: backend, "tensorflow": "tensorflow", **packages}.items():
        if importlib.util.find_spec(package) is None:
            raise Problem(f"This example needs {install}: pip install {install}")


def find_builder(name):
    import keras_dualstream

    functions = {key: value for key, value in vars(keras_dualstream).items() if inspect.isfunction(value)}
    builders = {key: value for key, value in functions.items() if "include_top" in inspect.signature(value).parameters}
    if name not in builders:
        raise Problem(f"--model must be one of {', '.join(sorted(builders))}. Received: {name!r}")
    return builders[name]


def branch_options(name):
    """Branches that start at a tenth of their strength suit a short training better than the papers' millionth."""
    import keras_dualstream

    backbone = getattr(keras_dualstream, f"{name[:-1]}Backbone")
    scaled = "layer_scale_init_value" in inspect.signature(backbone).parameters
    return {"layer_scale_init_value": 0.1} if scaled else {}


# ---------------------------------------------------------------------------------------------------------------------
# Data: arrays of uint8 images, labels and class names; then tf.data.


def load_images(data, size, limit):
    """`(images, labels, class_names)` of any of the three sources, resized, RGB, in [0, 255]."""
    import numpy as np

    source = load_digits if data == "digits" else load_tfds if data.startswith("tfds:") else load_folder
    pairs, class_names = source(data)
    if len(class_names) < 4:
        raise Problem(f"--data {data!r} must have at least 4 classes, two to train on and two to transfer to.")
    counts, images, labels = [0] * len(class_names), [], []
    for read, label in pairs:
        if limit is None or counts[label] < limit:
            counts[label] += 1
            images.append(resize(read(), size))
            labels.append(label)
    for name, count in zip(class_names, counts, strict=True):
        if count < 5:
            raise Problem(f"--data {data!r} must have at least 5 images of each class. Received: {count} of {name!r}")
    print(f"{len(images)} images of {len(class_names)} classes, {size}×{size} pixels", flush=True)
    return np.stack(images), np.array(labels), class_names


def load_digits(_):
    """Each scan somewhere on a larger canvas, in one of many sizes, so that its place says nothing about its class."""
    import numpy as np
    import tensorflow as tf
    from sklearn.datasets import load_digits

    digits = load_digits()
    rng = np.random.default_rng(0)

    def place(scan):
        canvas = np.zeros((96, 96, 1), "float32")
        size = rng.integers(52, 82)
        top, left = rng.integers(0, 96 - size, 2)
        canvas[top : top + size, left : left + size] = tf.image.resize(scan[..., None] * (255 / 16), (size, size))
        return canvas

    pairs = (
        (lambda scan=scan: place(scan), int(label)) for scan, label in zip(digits.images, digits.target, strict=True)
    )
    return pairs, [str(name) for name in digits.target_names]


def load_folder(path):
    import tensorflow as tf

    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise Problem(f"--data must be 'digits', an existing folder or tfds:NAME. Received: {path!r}")
    class_names = sorted(child.name for child in folder.iterdir() if child.is_dir())

    def read(file):
        try:
            return tf.io.decode_image(tf.io.read_file(str(file)), 3, expand_animations=False)
        except tf.errors.OpError as error:
            raise Problem(f"--data {path!r} has a file that cannot be read as an image: {file}") from error

    def pairs():
        for label, name in enumerate(class_names):
            for file in sorted((folder / name).rglob("*")):
                if file.suffix.lower() in IMAGE_SUFFIXES:
                    yield lambda file=file: read(file), label

    return pairs(), class_names


def load_tfds(data):
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise Problem("--data tfds:NAME needs TensorFlow Datasets: pip install tensorflow-datasets") from error
    name = data.removeprefix("tfds:")
    try:
        datasets, info = tfds.load(name, with_info=True)
    except Exception as error:
        raise Problem(
            f"TensorFlow Datasets cannot give {name!r}: {str(error).partition(chr(10))[0] or repr(error)}"
        ) from error
    features = info.features
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
        raise Problem(f"--data {data!r} must have images and labels. Its features are {', '.join(features)}.")
    pairs = (
        (lambda example=example: example["image"], int(example["label"]))
        for dataset in datasets.values()
        for example in dataset
    )
    return pairs, features["label"].names


def resize(image, size):
    import tensorflow as tf

    image = tf.image.resize(image, (size, size))
    if image.shape[-1] == 1:
        image = tf.image.grayscale_to_rgb(image)
    return tf.cast(tf.round(image[..., :3]), "uint8").numpy()


def split(labels, seed=0):
    """Indices for training (70 %), validation (10 %) and test, each with every class in the same proportion."""
    import numpy as np

    rng = np.random.default_rng(seed)
    parts = ([], [], [])
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        train = int(0.7 * len(indices))
        test = train + max(1, int(0.1 * len(indices)))
        for part, chosen in zip(parts, np.split(indices, [train, test]), strict=True):
            part.append(chosen)
    return [rng.permutation(np.concatenate(part)) for part in parts]


def to_dataset(images, labels, training, batch_size=32):
    """A tf.data pipeline; in training it shuffles and shifts the images by up to an eighth."""
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    if training:
        shift, shape = images.shape[1] // 8, images.shape[1:]

        def shifted(example, seed):
            image, label = example
            padded = tf.pad(image, [[shift, shift], [shift, shift], [0, 0]], mode="SYMMETRIC")
            return tf.image.stateless_random_crop(padded, shape, (seed, 0)), label

        seeds = tf.data.Dataset.random(seed=0)
        dataset = tf.data.Dataset.zip((dataset.shuffle(len(images), seed=0), seeds)).map(shifted, tf.data.AUTOTUNE)
    return dataset.map(lambda image, label: (tf.cast(image, "float32"), label)).batch(batch_size).prefetch(2)


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train(model, train_data, validation_data, epochs, learning_rate):
    """Compiles with AdamW under a warm-up and a cosine decay, and fits; returns the history."""
    import keras

    steps = epochs * len(train_data)
    decay = keras.optimizers.schedules.CosineDecay(
        0.0, max(steps - steps // 10, 1), warmup_target=learning_rate, warmup_steps=steps // 10
    )

    def set_learning_rate(_, logs=None):
        # On JAX the trainer keeps the variables to itself during an epoch, until it is asked for them.
        getattr(model, "jax_state_sync", lambda: None)()
        model.optimizer.learning_rate = float(decay(int(model.optimizer.iterations)))

    # Set by a callback: of a schedule in the optimizer, TensorFlow would trace a copy for every weight, which takes as
    # long as the training.
    schedule = keras.callbacks.LambdaCallback(on_train_batch_begin=set_learning_rate)
    optimizer = keras.optimizers.AdamW(learning_rate, weight_decay=0.02, clipnorm=1.0)
    # With its variables made before, TensorFlow traces the first step once instead of twice.
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model.fit(train_data, validation_data=validation_data, epochs=epochs, callbacks=[schedule]).history


def accuracy(model, dataset):
    return model.evaluate(dataset, verbose=0, return_dict=True)["accuracy"]


def run(arguments, output):
    """Everything but the export; returns what the figure and the summary need."""
    import keras
    import numpy as np

    builder = find_builder(arguments.model)
    keras.utils.set_random_seed(0)
    images, labels, names = load_images(arguments.data, arguments.image_size, arguments.images_per_class)
    half = len(names) // 2
    source = labels < half
    data = {"source": (images[source], labels[source]), "target": (images[~source], labels[~source] - half)}
    parts = {task: split(task_labels) for task, (_, task_labels) in data.items()}

    def dataset(task, part, training=False, most=None):
        task_images, task_labels = data[task]
        indices = parts[task][part]
        if most is not None:
            indices = np.concatenate(
                [indices[task_labels[indices] == label][:most] for label in np.unique(task_labels)]
            )
        return to_dataset(task_images[indices], task_labels[indices], training)

    def build(**options):
        keras.utils.set_random_seed(1)
        try:
            return builder(input_shape=images.shape[1:], **branch_options(arguments.model), **options)
        except ValueError as error:
            raise Problem(
                f"{arguments.model} cannot be built with --image-size {arguments.image_size}: {error}"
            ) from error

    results, histories = {}, {}
    heading(1, f"Training {arguments.model} on {', '.join(names[:half])}")
    model = build(classes=half)
    histories["trained from nothing"] = train(
        model, dataset("source", 0, training=True), dataset("source", 1), arguments.epochs, 1e-3
    )
    results[f"{names[0]} to {names[half - 1]}, trained from nothing"] = accuracy(model, dataset("source", 2))
    weights = output / "source.weights.h5"
    model.save_weights(weights)

    few = dataset("target", 0, training=True, most=arguments.labelled)
    head_epochs = 3 * arguments.epochs // 2
    titles = {"untrained": "frozen untrained backbone", "transferred": "frozen transferred backbone"}
    for step, (kind, title) in enumerate(titles.items(), 2):
        heading(step, f"A new head for {', '.join(names[half:])} on a {title}, {arguments.labelled} images of each")
        backbone = build(include_top=False, pooling="avg")
        if kind == "transferred":
            backbone.load_weights(weights)
        backbone.trainable = False
        features = keras.layers.BatchNormalization(momentum=0.9, name="new_norm")(backbone.output)
        predictions = keras.layers.Dense(len(names) - half, activation="softmax", name="new_head")(features)
        model = keras.Model(backbone.input, predictions)
        histories[title] = train(model, few, dataset("target", 1), head_epochs, 1e-2)
        results[f"{names[half]} to {names[-1]}, {title}"] = accuracy(model, dataset("target", 2))

    heading(4, "Fine-tuning all of it")
    backbone.trainable = True
    histories["fine-tuned"] = train(model, few, dataset("target", 1), arguments.epochs, 3e-4)
    results[f"{names[half]} to {names[-1]}, fine-tuned"] = accuracy(model, dataset("target", 2))

    test_images, test_labels = (values[parts["target"][2]] for values in data["target"])
    test_images = test_images.astype("float32")
    probabilities = model.predict(test_images, verbose=0)
    model.save(output / "model.keras")
    np.savez(output / "predictions.npz", images=test_images, probabilities=probabilities)
    return results, histories, (test_images, test_labels, probabilities, names[half:])


def heading(step, text):
    print(f"\n{step}/6 {text}", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Export. TensorFlow writes both formats, whatever trained the model, so this runs in a process of its own; it shows too
# that the files need nothing of the process that trained.


def export(output):
    """Exports `model.keras`, loads what was written and prints the largest difference of each as JSON."""
    import keras
    import numpy as np
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    import keras_dualstream  # noqa: F401  Makes its layers known to Keras.

    model = keras.models.load_model(output / "model.keras", compile=False)
    model.export(output / "saved_model", format="tf_saved_model", verbose=False)
    model.export(output / "model.tflite", format="litert", verbose=False)
    with np.load(output / "predictions.npz") as file:
        images, expected = file["images"], file["probabilities"]

    saved_model = tf.saved_model.load(str(output / "saved_model"))
    served = saved_model.serve(images).numpy()
    interpreter = Interpreter(str(output / "model.tflite"))
    index = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(index, images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(index, images)
    interpreter.invoke()
    lite = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    differences = {"SavedModel": served, "TFLite": lite}
    print(json.dumps({name: float(np.abs(found - expected).max()) for name, found in differences.items()}))


def export_in_fresh_process(output):
    """The largest difference of each exported file from the model."""
    heading(5, "Exporting SavedModel and TFLite, and comparing them with the model in a fresh process")
    command = [sys.executable, __file__, "--export-only", "--backend", "tensorflow", "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    start = time.perf_counter()
    printed = None
    while printed is None:
        print(f"\r  {time.perf_counter() - start:.0f} s", end="", flush=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            printed, errors = process.communicate(timeout=2)
    print("\r", end="")
    if process.returncode:
        raise Problem(f"The export failed:\n{errors}")
    differences = json.loads(printed.splitlines()[-1])
    sizes = {"SavedModel": folder_size(output / "saved_model"), "TFLite": (output / "model.tflite").stat().st_size}
    for name, difference in differences.items():
        print(f"  {name}: {sizes[name] / 1e6:.0f} MB, probabilities differ by at most {difference:.1e}", flush=True)
        if not difference <= TOLERANCE:
            raise Problem(f"The {name} file disagrees with the model by {difference:.1e}, more than {TOLERANCE}.")
    return differences


def folder_size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# ---------------------------------------------------------------------------------------------------------------------
# Figure


def draw(path, results, histories, predictions):
    """Learning curves, test accuracies, predictions, and what went wrong."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(13, 11), layout="constrained")
    curves, bars, examples, mistakes = figure.subfigures(4, 1, height_ratios=(1.15, 0.9, 1, 1.1))
    draw_curves(curves, histories)
    draw_bars(bars, results)
    test_images, labels, probabilities, names = predictions
    confidences, guesses = probabilities.max(axis=1), probabilities.argmax(axis=1)
    wrong = guesses != labels
    draw_images(examples, "Predictions on test images", range(10), test_images, labels, guesses, confidences, names)
    order = sorted(range(len(labels)), key=lambda i: (~wrong[i], -confidences[i] if wrong[i] else confidences[i]))
    title = f"What went wrong: {wrong.sum()} of {len(labels)}, the most confident mistakes first"
    if not wrong.any():
        title = f"Nothing went wrong on {len(labels)} images; the least confident ones"
    draw_images(mistakes, title, order[:10], test_images, labels, guesses, confidences, names)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_curves(figure, histories):
    figure.suptitle("Learning curves", fontweight="bold")
    axes = figure.subplots(1, 2)
    for title, history in histories.items():
        epochs = range(1, len(history["loss"]) + 1)
        line = axes[0].plot(epochs, history["loss"], label=f"{title}, training")[0]
        axes[0].plot(epochs, history["val_loss"], "--", color=line.get_color())
        axes[1].plot(epochs, history["val_accuracy"], "--", color=line.get_color(), label=title)
    axes[0].set(xlabel="epoch", ylabel="cross-entropy (dashed: validation)", yscale="log")
    axes[1].set(xlabel="epoch", ylabel="validation accuracy", ylim=(0, 1.03))
    axes[1].legend(fontsize=9, loc="lower right")
    for axis in axes:
        axis.grid(alpha=0.3)


def draw_bars(figure, results):
    figure.suptitle("Test accuracy", fontweight="bold")
    axis = figure.subplots()
    titles, values = list(results)[::-1], list(results.values())[::-1]
    bars = axis.barh(titles, values, color=["#2a7f62", "#2a7f62", "#b0b0b0", "#33658a"][-len(values) :])
    axis.bar_label(bars, [f" {value:.1%}" for value in values])
    axis.set_xlim(0, 1.1)
    axis.spines[["top", "right"]].set_visible(False)


def draw_images(figure, title, indices, images, labels, guesses, confidences, names):
    figure.suptitle(title, fontweight="bold")
    axes = figure.subplots(1, 10)
    for axis in axes:
        axis.axis("off")
    for axis, index in zip(axes, (index for index in indices if index < len(labels)), strict=False):
        right = guesses[index] == labels[index]
        axis.imshow(images[index] / 255)
        text = f"{names[guesses[index]]}  {confidences[index]:.0%}"
        text += "" if right else f"\nis {names[labels[index]]}"
        axis.set_title(text, color="#2a7f62" if right else "#c0392b", fontsize=11)


# ---------------------------------------------------------------------------------------------------------------------


def main(argv=None):
    """Runs the example; returns the exit status."""
    arguments = parse_arguments(argv)
    os.environ["KERAS_BACKEND"] = arguments.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    start = time.perf_counter()
    try:
        output = make_output_folder(arguments.output)
        if arguments.export_only:
            export(output)
            return 0
        check_packages(arguments.backend)
        results, histories, predictions = run(arguments, output)
        export_in_fresh_process(output)
        heading(6, "Drawing")
        draw(output / "figure.png", results, histories, predictions)
    except Problem as problem:
        print(f"{pathlib.Path(__file__).name}: {problem}", file=sys.stderr)
        return 2
    print(f"\nTest accuracy ({arguments.model} on {arguments.backend})")
    for title, value in results.items():
        print(f"  {title:<42} {value:6.1%}")
    print(f"Figure and exported models in {output}/; {time.perf_counter() - start:.0f} s in all.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
