"""What padding windows costs: a DFvT whose windows fit the maps of an image size, beside one that pads them.

    KERAS_BACKEND=torch python benchmarks/windows.py DFvTS --size 384 --windows 7 12 --batch 8

Prints a row per window: the sides of the maps in windows, padded as they are, how many positions the attention of all
blocks sees for each that there is, and images per second, the median of calls of all models in turn.
"""

import argparse
import statistics
import time

import keras
import numpy as np

import keras_dualstream


def seconds(model, x):
    """The time of one prediction."""
    start = time.perf_counter()
    model.predict_on_batch(x)
    return time.perf_counter() - start


def padded_sides(size, window):
    """The side of each stage's map, and the side after padding."""
    sides = [-(-size // stride) for stride in (8, 16, 32, 32)]
    windows = [min(side, window) for side in sides]
    return sides, [-(-side // each) * each for side, each in zip(sides, windows, strict=True)]


def main():
    """Reads the arguments and measures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a builder of DFvT")
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--windows", type=int, nargs="+", default=[7, 12])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    x = 255 * np.random.default_rng(0).random((arguments.batch, arguments.size, arguments.size, 3)).astype("float32")
    builder = getattr(keras_dualstream, arguments.model)
    models = {window: builder(input_shape=x.shape[1:], window_size=window) for window in arguments.windows}
    times = {window: [seconds(model, x)] for window, model in models.items()}
    for _ in range(arguments.repetitions):
        for window, model in models.items():
            times[window].append(seconds(model, x))
    print(f"{keras.config.backend()}, {arguments.model}, {arguments.size}×{arguments.size}, batch {arguments.batch}\n")
    print(
        "| window | parameters | sides of the maps | padded | positions per position | images/s |\n" + "|---" * 6 + "|"
    )
    for window, model in models.items():
        sides, padded = padded_sides(arguments.size, window)
        depths = model.backbone.depths
        seen, there = (sum(d * side**2 for d, side in zip(depths, s, strict=True)) for s in (padded, sides))
        share = seen / there
        speed = arguments.batch / statistics.median(times[window][1:])
        cells = (window, f"{model.count_params():,}", *(", ".join(map(str, row)) for row in (sides, padded)))
        print(f"| {' | '.join(map(str, cells))} | {share:.2f} | {speed:.1f} |")


if __name__ == "__main__":
    main()
