"""Size, agreement and latency of TFLite files at every precision, on real images.

    KERAS_BACKEND=tensorflow python benchmarks/tflite.py DFvTT DFvTS

Each model first learns to tell sixteen regions of scikit-learn's two sample photographs apart (`--steps` steps of 16
random crops), so that its logits mean something. Then it is exported with batch 1 as float32, float16, dynamic-range
int8 and full int8, calibrated on other crops, and every file is compared with the Keras model on further crops of the
same photographs. The last row keeps in float what `--float-ops` names. Prints a Markdown table, and which
kinds of operators lose most in full int8. Needs the `examples` extra.
"""

import argparse
import collections
import os
import statistics
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.schema_py_generated import BuiltinOperator
from sklearn.datasets import load_sample_images

import keras_dualstream

ROWS, COLUMNS = 2, 4
SIZE = 224
CALIBRATION = 64


def crops(count, seed):
    """Random square crops of the photographs' regions, resized, and the regions' numbers."""
    rng = np.random.default_rng(seed)
    regions = [
        region
        for photograph in load_sample_images().images
        for row in np.array_split(photograph, ROWS, axis=0)
        for region in np.array_split(row, COLUMNS, axis=1)
    ]
    labels = rng.integers(len(regions), size=count)
    images = []
    for label in labels:
        region = regions[label]
        side = rng.integers(min(region.shape[:2]) * 2 // 3, min(region.shape[:2]))
        top, left = (rng.integers(size - side) for size in region.shape[:2])
        images.append(tf.image.resize(region[top : top + side, left : left + side], (SIZE, SIZE), antialias=True))
    return np.array(images, "float32"), labels


def trained(name, steps):
    """A model that tells the regions apart, giving logits."""
    keras.utils.set_random_seed(0)
    model = getattr(keras_dualstream, name)(classes=2 * ROWS * COLUMNS, classifier_activation=None)
    optimizer = keras.optimizers.AdamW(5e-4, clipnorm=1.0)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for step in range(steps):
        model.train_on_batch(*crops(16, seed=(1, step)))
    return model


def calibration():
    """The representative dataset: one crop at a time."""
    for image in crops(CALIBRATION, seed=2)[0]:
        yield [image[None]]


INT8 = dict(
    optimizations=[tf.lite.Optimize.DEFAULT],
    representative_dataset=calibration,
    inference_input_type=tf.int8,
    inference_output_type=tf.int8,
    target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]},
)
FORMATS = {
    "float32": {},
    "float16": dict(optimizations=[tf.lite.Optimize.DEFAULT], target_spec={"supported_types": [tf.float16]}),
    "dynamic-range int8": dict(optimizations=[tf.lite.Optimize.DEFAULT]),
    "full int8": INT8,
}


def quantization_debugger(saved_model, **options):
    """TensorFlow's debugger of a SavedModel's full int8 form."""
    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
    for name in ("optimizations", "representative_dataset"):
        setattr(converter, name, INT8[name])
    converter.target_spec.supported_ops = INT8["target_spec"]["supported_ops"]
    return tf.lite.experimental.QuantizationDebugger(
        converter=converter,
        debug_dataset=calibration,
        debug_options=tf.lite.experimental.QuantizationDebugOptions(**options),
    )


def losses_by_operator(saved_model, path):
    """For each kind of operator, how many there are and the median and largest error in steps of int8."""
    debugger = quantization_debugger(saved_model)
    debugger.run()
    with open(path, "w") as file:
        debugger.layer_statistics_dump(file)
    table = np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8")
    errors = collections.defaultdict(list)
    for row in table:
        errors[row["op_name"]].append(np.sqrt(row["mean_squared_error"]) / row["scale"])
    return sorted(((name, len(e), np.median(e), max(e)) for name, e in errors.items()), key=lambda row: -row[3])


def write_mixed(saved_model, path, float_ops):
    """Writes the full int8 file in which some kinds of operators stay in float."""
    content = quantization_debugger(saved_model, denylisted_ops=float_ops).get_nondebug_quantized_model()
    with open(path, "wb") as file:
        file.write(content)


def run(path, images, threads):
    """Logits of the images, milliseconds an image (the median) and the operators that are not built in."""
    interpreter = Interpreter(path, num_threads=threads)
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    logits, times = [], []
    for image in images:
        interpreter.set_tensor(given["index"], quantized(image[None], given))
        start = time.perf_counter()
        interpreter.invoke()
        times.append(time.perf_counter() - start)
        logits.append(dequantized(interpreter.get_tensor(result["index"])[0], result))
    used = {op["op_name"] for op in interpreter._get_ops_details()} - {"DELEGATE"}
    return np.array(logits), 1000 * statistics.median(times), used - set(vars(BuiltinOperator))


def quantized(x, details):
    """An array in the dtype that the file takes."""
    if details["dtype"] != np.int8:
        return x.astype(details["dtype"])
    scale, zero = details["quantization"]
    return np.clip(np.round(x / scale + zero), -128, 127).astype("int8")


def dequantized(x, details):
    """The numbers that the file's output stands for."""
    if details["dtype"] != np.int8:
        return x
    scale, zero = details["quantization"]
    return (x.astype("float32") - zero) * scale


def report(name, arguments, folder):
    """Trains, exports and measures one model."""
    model = trained(name, arguments.steps)
    images, labels = crops(arguments.images, seed=3)
    expected = model.predict(images, batch_size=16, verbose=0)
    accuracy = np.mean(expected.argmax(axis=-1) == labels)
    print(f"| {name} | Keras, float32 | | {accuracy:.0%} | | | |", flush=True)
    path = os.path.join(folder, "model.tflite")
    saved_model = os.path.join(folder, name)
    signature = [keras.InputSpec(shape=(1, SIZE, SIZE, 3), dtype="float32")]
    model.export(saved_model, "tf_saved_model", input_signature=signature, verbose=False)
    for form, options in {**FORMATS, f"int8 but {', '.join(arguments.float_ops)}": None}.items():
        if options is None:
            write_mixed(saved_model, path, arguments.float_ops)
        else:
            model.export(path, "litert", input_signature=signature, verbose=False, **options)
        logits, milliseconds, foreign = run(path, images, arguments.threads)
        same = np.mean(logits.argmax(axis=-1) == expected.argmax(axis=-1))
        accuracy = np.mean(logits.argmax(axis=-1) == labels)
        error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
        cells = (name, form, f"{os.path.getsize(path) / 1e6:.1f}", f"{accuracy:.0%}", f"{same:.0%}", f"{error:.1e}")
        print(f"| {' | '.join(cells)} | {milliseconds:.0f} |", flush=True)
        if foreign:
            raise RuntimeError(f"{form} needs operators that are not built in: {foreign}")
    return losses_by_operator(saved_model, os.path.join(folder, "errors.csv"))


def main():
    """Reads the arguments and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", help="builders of keras_dualstream")
    parser.add_argument("--steps", type=int, default=120, help="training steps of 16 crops")
    parser.add_argument("--images", type=int, default=128, help="crops to compare on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--float-ops", nargs="*", default=["BATCH_MATMUL"], help="kept in float at last")
    arguments = parser.parse_args()
    print("| model | file | MB | accuracy | top-1 as Keras | error of the logits | ms an image |\n|" + "---|" * 7)
    losses = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            losses[name] = report(name, arguments, folder)
    print("\n| model | operator in full int8 | count | median error, steps | largest |\n|" + "---|" * 5)
    for name, rows in losses.items():
        for operator, count, median, largest in rows:
            print(f"| {name} | {operator} | {count} | {median:.2f} | {largest:.2f} |")


if __name__ == "__main__":
    main()
