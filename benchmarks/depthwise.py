"""Times `ops/depthwise.py` on one backend beside the naive Keras form and PyTorch's grouped convolution.

    KERAS_BACKEND=jax python benchmarks/depthwise.py --batches 1 8 32

Prints Markdown: one row per shape of TransXNet-T and Dual-ViT-S with the median milliseconds of a forward pass and of a
pass with the gradients of map and kernel, then the geometric means of the ratios. PyTorch is timed in the same run,
repetition by repetition in turn with the others; "nan" did not fit into memory. The naive form is
`keras.ops.depthwise_conv`, of a map padded before or with "same" zeros, whichever is faster; of a kernel per sample,
one whose channels are those of all samples.
"""

import argparse
import math
import statistics
import time

import keras
import numpy as np
import torch
from keras import ops

from keras_dualstream.ops.depthwise import depthwise_conv2d
from keras_dualstream.ops.depthwise import dynamic_depthwise_conv2d

# Height and width, channels, kernel size, stride, whether every sample has its own kernel.
SHAPES = {
    "TransXNet position encoding, stage 1": (56, 48, 7, 1, False),
    "stage 2": (28, 96, 7, 1, False),
    "stage 3": (14, 224, 7, 1, False),
    "stage 4": (7, 448, 7, 1, False),
    "TransXNet IDConv, stage 1": (56, 24, 7, 1, True),
    "stage 2 ": (28, 48, 7, 1, True),
    "stage 3 ": (14, 112, 7, 1, True),
    "stage 4 ": (7, 224, 7, 1, True),
    "TransXNet reduction, stage 1": (56, 24, 11, 8, False),
    "stage 2, stride 4": (28, 48, 7, 4, False),
    "stage 3, stride 2": (14, 112, 5, 2, False),
    "TransXNet token enhancer, stage 1": (56, 48, 3, 1, False),
    "stage 3, 3×3": (14, 224, 3, 1, False),
    "TransXNet MS-FFN 5×5, stage 1": (56, 48, 5, 1, False),
    "stage 3, 5×5": (14, 224, 5, 1, False),
    "Dual-ViT feed-forward, stage 1": (56, 512, 3, 1, False),
    "stage 2, 3×3": (28, 1024, 3, 1, False),
    "stage 3, 3×3 ": (14, 1280, 3, 1, False),
    "stage 4, 3×3": (7, 1344, 3, 1, False),
}


def convolutions(kernel_size, stride, dynamic):
    """The functions that are compared, of a map and a kernel in Keras' layouts."""
    zeros = ((kernel_size // 2,) * 2,) * 2
    pads = ((0, 0), *zeros, (0, 0))

    def naive(x, kernel, padding="valid"):
        if dynamic:
            batch, height, width, channels = x.shape
            x = ops.reshape(ops.transpose(x, (1, 2, 0, 3)), (1, height, width, batch * channels))
            kernel = ops.reshape(ops.transpose(kernel, (1, 2, 0, 3)), (*kernel.shape[1:3], batch * channels, 1))
        x = ops.pad(x, pads) if padding == "valid" else x
        y = ops.depthwise_conv(x, kernel, (stride, stride), padding, data_format="channels_last")
        return ops.transpose(ops.reshape(y, (*y.shape[1:3], batch, channels)), (2, 0, 1, 3)) if dynamic else y

    def naive_same(x, kernel):
        return naive(x, kernel, "same")

    def ours(x, kernel):
        if dynamic:
            return dynamic_depthwise_conv2d(x, kernel)
        return depthwise_conv2d(x, kernel, (stride, stride), zeros)

    # With a stride, "same" means other zeros.
    return {"naive": naive, "ours": ours, **({"naive, same": naive_same} if stride == 1 else {})}


def compilers():
    """Each way the backend runs a function: its name and what prepares forward and gradients."""
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        def with_gradients(function):
            def gradients(x, kernel):
                with tf.GradientTape() as tape:
                    tape.watch((x, kernel))
                    loss = tf.reduce_sum(function(x, kernel) ** 2)
                return tape.gradient(loss, (x, kernel))

            return gradients

        def compiler(jit_compile):
            return lambda function: [
                tf.function(part, jit_compile=jit_compile) for part in (function, with_gradients(function))
            ]

        return {"TensorFlow graph": compiler(False), "TensorFlow XLA": compiler(True)}
    if backend == "jax":
        import jax

        def compile_both(function):
            loss = jax.grad(lambda x, kernel: (function(x, kernel) ** 2).sum(), (0, 1))
            return jax.jit(function), jax.jit(loss)

        return {"JAX": compile_both}
    return {"PyTorch": lambda function: (torch.no_grad()(function), torch_gradients(function))}


def torch_gradients(function):
    """The gradients of the sum of squares of a PyTorch function."""

    def gradients(x, kernel):
        inputs = [tensor.detach().requires_grad_() for tensor in (x, kernel)]
        return torch.autograd.grad((function(*inputs) ** 2).sum(), inputs)

    return gradients


def grouped(size, channels, kernel_size, stride, dynamic, batch):
    """PyTorch's grouped convolution in its own layout, and its arguments."""
    groups = batch * channels if dynamic else channels
    x = torch.randn(1, groups, size, size) if dynamic else torch.randn(batch, channels, size, size)
    kernel = torch.randn(groups, 1, kernel_size, kernel_size)

    def convolve(x, kernel):
        return torch.nn.functional.conv2d(x, kernel, stride=stride, padding=kernel_size // 2, groups=groups)

    return convolve, (x, kernel)


def wait(results):
    """Waits until tensors of any backend are computed."""
    for result in results if isinstance(results, (list, tuple)) else [results]:
        if hasattr(result, "block_until_ready"):
            result.block_until_ready()
        elif keras.config.backend() == "tensorflow" and not isinstance(result, torch.Tensor):
            result.numpy()


def milliseconds(functions, repetitions):
    """Median time of each function, one repetition of all after the other; not a number where memory does not suffice.

    A function that takes over a second is timed once.
    """
    times = {name: [seconds(function), seconds(function)] for name, function in functions.items()}
    for name, (_, warm) in times.items():
        times[name] = [warm] if not warm < 1 else []
    slow = [name for name in functions if times[name]]
    for _ in range(repetitions):
        for name, function in functions.items():
            if name not in slow:
                times[name].append(seconds(function))
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def seconds(function):
    """The time of one call, not a number where memory does not suffice."""
    start = time.perf_counter()
    try:
        wait(function())
    except Exception as error:
        if "memory" not in str(error).lower():
            raise
        return math.nan
    return time.perf_counter() - start


def measure(compile_both, batch, size, channels, kernel_size, stride, dynamic, repetitions):
    """Forward times and times with gradients of PyTorch, naive and ours."""
    rng = np.random.default_rng(0)
    kernel_shape = (batch, kernel_size, kernel_size, channels) if dynamic else (kernel_size, kernel_size, channels, 1)
    shapes = ((batch, size, size, channels), kernel_shape)
    arrays = [ops.convert_to_tensor(rng.standard_normal(shape), dtype="float32") for shape in shapes]
    peer, peer_arrays = grouped(size, channels, kernel_size, stride, dynamic, batch)
    forward = {"PyTorch": lambda: torch.no_grad()(peer)(*peer_arrays)}
    backward = {"PyTorch": lambda: torch_gradients(peer)(*peer_arrays)}
    for name, function in convolutions(kernel_size, stride, dynamic).items():
        run, gradients = compile_both(function)
        forward[name] = lambda run=run: run(*arrays)
        backward[name] = lambda gradients=gradients: gradients(*arrays)
    return [better_naive(milliseconds(functions, repetitions)) for functions in (forward, backward)]


def better_naive(times):
    """The times with the better of the naive forms as "naive"."""
    return {**times, "naive": min(times["naive"], times.get("naive, same", math.inf))}


def summary(ratios):
    """Geometric mean, least and number of the ratios that could be measured."""
    measured = [ratio for ratio in ratios if not math.isnan(ratio)]
    mean = math.exp(statistics.mean(map(math.log, measured)))
    return f"{mean:.2f}, least {min(measured):.2f}, of {len(measured)}"


def main():
    """Prints the table and the geometric means of each way of running."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[8])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; the others take what the machine has")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for title, compile_both in compilers().items():
        print(f"\n### {title}\n")
        print(
            "| convolution | batch | forward, ms: PyTorch | naive | ours | with gradients, ms: PyTorch | naive | ours |"
        )
        print("|---|---|---|---|---|---|---|---|")
        ratios = {f"{peer} / ours, {kind}": [] for kind in ("forward", "gradients") for peer in ("PyTorch", "naive")}
        for batch in arguments.batches:
            for name, shape in SHAPES.items():
                forward, backward = measure(compile_both, batch, *shape, arguments.repetitions)
                cells = [f"{times[kind]:.2f}" for times in (forward, backward) for kind in ("PyTorch", "naive", "ours")]
                size, channels, kernel_size, *_ = shape
                label = f"{name.strip()}: {kernel_size}×{kernel_size}, {size}×{size}×{channels}"
                print(f"| {label} | {batch} | {' | '.join(cells)} |", flush=True)
                for kind, times in (("forward", forward), ("gradients", backward)):
                    for peer in ("PyTorch", "naive"):
                        ratios[f"{peer} / ours, {kind}"].append(times[peer] / times["ours"])
        print()
        for name, values in ratios.items():
            print(f"- {name}: {summary(values)}")


if __name__ == "__main__":
    main()
