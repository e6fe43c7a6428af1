"""Times the lowerings of the depthwise convolution on one backend and prints rows of Markdown.

    KERAS_BACKEND=jax python benchmarks/depthwise.py

Compares the backend's own grouped convolution with the sum of shifted products, forward and forward plus backward, at
the shapes of Dual-ViT-S. `ops/depthwise.py` chooses by these numbers.
"""

import statistics
import time

import keras
import numpy as np
from keras import ops

from keras_dualstream.ops.depthwise import sum_of_shifts

SHAPES = [(8, 56, 56, 512), (8, 28, 28, 1024), (8, 14, 14, 1280), (8, 7, 7, 1344), (1, 56, 56, 512)]
LOWERINGS = {
    "grouped": lambda x, kernel: ops.depthwise_conv(x, kernel, padding="same", data_format="channels_last"),
    "shifts": lambda x, kernel: sum_of_shifts(x, kernel, (1, 1), "same", (1, 1)),
}


def compiled(lowering):
    """Each way this backend runs: its name, a forward function and one for the gradients of input and kernel."""
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        def gradients(x, kernel):
            with tf.GradientTape() as tape:
                tape.watch((x, kernel))
                loss = tf.reduce_sum(lowering(x, kernel) ** 2)
            return tape.gradient(loss, (x, kernel))

        for name, jit in (("TensorFlow graph", False), ("TensorFlow XLA", True)):
            yield name, tf.function(lowering, jit_compile=jit), tf.function(gradients, jit_compile=jit)
    elif backend == "jax":
        import jax

        loss = jax.grad(lambda x, kernel: (lowering(x, kernel) ** 2).sum(), (0, 1))
        yield "JAX", jax.jit(lowering), jax.jit(loss)
    else:
        import torch

        def gradients(x, kernel):
            inputs = [tensor.detach().requires_grad_() for tensor in (x, kernel)]
            return torch.autograd.grad((lowering(*inputs) ** 2).sum(), inputs)

        yield "PyTorch", torch.no_grad()(lowering), gradients


def milliseconds(function, *inputs, repetitions=7):
    """Median time of a call, result read, after two calls to warm up."""
    times = []
    for _ in range(repetitions + 2):
        start = time.perf_counter()
        results = function(*inputs)
        for result in results if isinstance(results, (list, tuple)) else [results]:
            ops.convert_to_numpy(result)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def main():
    """Prints one row a shape, way of running and lowering."""
    print("| runs as | shape | lowering | forward, ms | with gradients, ms |\n|---|---|---|---|---|")
    for shape in SHAPES:
        rng = np.random.default_rng(0)
        x = ops.convert_to_tensor(rng.standard_normal(shape), dtype="float32")
        kernel = ops.convert_to_tensor(rng.standard_normal((3, 3, shape[-1], 1)), dtype="float32")
        for lowering, function in LOWERINGS.items():
            for name, forward, gradients in compiled(function):
                times = milliseconds(forward, x, kernel), milliseconds(gradients, x, kernel)
                size = "×".join(map(str, shape))
                print(f"| {name} | {size} | {lowering} | {times[0]:.1f} | {times[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
