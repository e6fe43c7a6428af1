"""Times and weighs a whole model on one backend, with the depthwise engine and with the naive forms of Keras.

    KERAS_BACKEND=jax python benchmarks/models.py TransXNetT --batch 8
    KERAS_BACKEND=jax python benchmarks/models.py TransXNetT --batch 8 --training
    KERAS_BACKEND=jax python benchmarks/models.py TransXNetT --batch 1 --size 800 1280 --only-engine
    KERAS_BACKEND=tensorflow python benchmarks/models.py TransXNetT --litert

Prints the time of the first call, images per second (the median of the others, both models in turn) and the peak of the
process' memory above what it had before the first call. `--only-engine` leaves the naive forms out, for their memory
would count too. `--litert` times the exported TFLite file instead, beside the model that it came from.
"""

import argparse
import contextlib
import os
import resource
import statistics
import tempfile
import time
from unittest import mock

import keras
import numpy as np

import keras_dualstream
from keras_dualstream.layers import depthwise_conv
from keras_dualstream.layers import id_conv


def naive_depthwise_conv2d(x, kernel, strides, padding, dilation_rate, data_format):
    """`ops.depthwise_conv` behind `ops.pad`."""
    if not isinstance(padding, str):
        x, padding = keras.ops.pad(x, ((0, 0), *padding, (0, 0))), "valid"
    return keras.ops.depthwise_conv(x, kernel, strides, padding, data_format, dilation_rate)


def naive_dynamic_depthwise_conv2d(x, kernel):
    """One kernel per sample as one depthwise convolution whose channels are those of all samples."""
    batch, height, width, channels = keras.ops.shape(x)
    x = keras.ops.reshape(keras.ops.transpose(x, (1, 2, 0, 3)), (1, height, width, batch * channels))
    taps = keras.ops.transpose(kernel, (1, 2, 0, 3))
    taps = keras.ops.reshape(taps, (*kernel.shape[1:3], batch * channels, 1))
    y = keras.ops.depthwise_conv(x, taps, 1, "same", data_format="channels_last")
    return keras.ops.transpose(keras.ops.reshape(y, (height, width, batch, channels)), (2, 0, 1, 3))


@contextlib.contextmanager
def naive_forms():
    """A context in which the layers use the naive forms."""
    with (
        mock.patch.object(depthwise_conv, "depthwise_conv2d", naive_depthwise_conv2d),
        mock.patch.object(id_conv, "dynamic_depthwise_conv2d", naive_dynamic_depthwise_conv2d),
    ):
        yield


def make_step(builder, arguments, x, context):
    """A function that runs one batch through a new model in a context, where it is traced or, on PyTorch, runs."""
    keras.utils.set_random_seed(0)
    model = builder(input_shape=x.shape[1:])
    model.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy", jit_compile=arguments.xla)
    labels = np.zeros(len(x), "int32")

    def step():
        with context():
            return model.train_on_batch(x, labels) if arguments.training else model.predict_on_batch(x)

    return step


def seconds(step):
    """The time of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def peak_memory():
    """The most memory this process has had, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def time_models(builder, arguments, x):
    """Prints first calls, throughputs, their ratio and the peak of memory."""
    contexts = {"engine": contextlib.nullcontext}
    if not arguments.only_engine:
        contexts["naive"] = naive_forms
    steps, times = {}, {}
    for name, context in contexts.items():
        steps[name] = make_step(builder, arguments, x, context)
        before = peak_memory()
        print(f"{name}: first call {seconds(steps[name]):.1f} s", flush=True)
        times[name] = []
    for _ in range(arguments.repetitions):
        for name, step in steps.items():
            times[name].append(seconds(step))
    throughputs = {name: len(x) / statistics.median(values) for name, values in times.items()}
    for name, value in throughputs.items():
        print(f"{name}: {value:.2f} images/s")
    if arguments.only_engine:
        print(f"peak memory {peak_memory():.2f} GB, before the first call {before:.2f} GB")
    else:
        print(f"engine / naive: {throughputs['engine'] / throughputs['naive']:.2f}")


def time_litert(builder, arguments, x):
    """Prints size, agreement and latency of the exported file beside the model's latency."""
    from ai_edge_litert.interpreter import Interpreter

    model = builder(input_shape=x.shape[1:], classifier_activation=None)
    model.compile(jit_compile=arguments.xla)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.tflite")
        signature = [keras.InputSpec(shape=x.shape, dtype="float32")]
        model.export(path, format="litert", input_signature=signature, verbose=False)
        size = os.path.getsize(path)
        interpreter = Interpreter(path, num_threads=os.cpu_count())
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    times = {"model": [], "TFLite": []}
    for _ in range(arguments.repetitions + 1):
        times["model"].append(seconds(lambda: model.predict_on_batch(x)))
        times["TFLite"].append(seconds(interpreter.invoke))
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    expected = model.predict_on_batch(x)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    print(f"TFLite: {size / 1e6:.1f} MB, relative difference of the logits {error:.1e}")
    for name, values in times.items():
        print(f"{name}: {1000 * statistics.median(values[1:]):.0f} ms a batch of {len(x)}")


def main():
    """Reads the arguments and measures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a builder of keras_dualstream")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, default=(224, 224), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--training", action="store_true", help="training steps instead of predictions")
    parser.add_argument("--xla", action="store_true", help="jit_compile=True on TensorFlow")
    parser.add_argument("--only-engine", action="store_true", help="without the naive forms")
    parser.add_argument("--litert", action="store_true", help="the exported TFLite file")
    arguments = parser.parse_args()
    arguments.xla = arguments.xla or ("auto" if keras.config.backend() == "jax" else False)
    x = 255 * np.random.default_rng(0).random((arguments.batch, *arguments.size, 3)).astype("float32")
    measure = time_litert if arguments.litert else time_models
    measure(getattr(keras_dualstream, arguments.model), arguments, x)


if __name__ == "__main__":
    main()
