"""Counts and times DS-Net's inter-scale alignment from 224 to 1024 pixels at a fixed global grid.

    KERAS_BACKEND=torch python benchmarks/alignment.py

Prints Markdown: the multiplications of DSNetT without alignment and of the alignment beside the number of local
positions, and the milliseconds of a prediction of one image, the fastest of several. The global streams keep the 7×7
(in the last stage 3×3) positions that they have at 224, by global strides that grow with the image. A second table
counts the variants at their own strides.
"""

import argparse
import time

import keras
import numpy as np

import keras_dualstream
from keras_dualstream.models.dsnet import VARIANTS

SIZES = (224, 448, 672, 896, 1024)
GRIDS = (7, 7, 7, 3)


def fixed_grid_strides(size):
    """The global strides that give `GRIDS` for square images."""
    return tuple(size // 2**level // grid for level, grid in zip((2, 3, 4, 5), GRIDS, strict=True))


def block_macs(block, height, width, channels):
    """Multiplications of a `DSBlock` without its alignment, and those of the alignment."""
    positions = height * width
    (*_, local), (_, *grid, coarse) = block.propagation.compute_output_shape((1, height, width, channels))
    cells = grid[0] * grid[1]
    pixelwise = 9 * channels + 2 * channels**2 + 9 * local + 2 * channels * int(channels * block.mlp_ratio)
    attention = cells * 3 * coarse**2 + 2 * cells**2 * coarse
    alignment = 0
    if block.alignment is not None:
        dim = block.alignment.alignment_dim or min(local, coarse)
        # Scores and weighted sums, in both directions.
        alignment = positions * 4 * local * dim + cells * 4 * coarse * dim + 4 * positions * cells * dim
    return positions * pixelwise + attention, alignment


def model_macs(model):
    """Multiplications of a DS-Net without alignments and resizing, those of its alignments, and its local positions.

    Args:
        model: a classifier or backbone of known image size.
    """
    rest, alignment, local_positions = 0, 0, 0
    for layer in model.layers:
        if isinstance(layer, keras_dualstream.layers.PatchEmbedding):
            _, height, width, channels = layer.output.shape
            rest += height * width * channels * layer.kernel_size**2 * layer.input.shape[-1]
        elif isinstance(layer, keras_dualstream.layers.DSBlock):
            more, aligning = block_macs(layer, *layer.output.shape[1:])
            rest, alignment = rest + more, alignment + aligning
            local_positions += height * width
        elif isinstance(layer, keras.layers.Dense):
            rest += layer.kernel.shape[0] * layer.kernel.shape[1]
    return rest, alignment, local_positions


def milliseconds(models, x, repetitions):
    """Time of the fastest prediction of each model, in turn with the others; what else the machine does only adds."""
    times = [[] for _ in models]
    for _ in range(repetitions + 1):
        for model, values in zip(models, times, strict=True):
            start = time.perf_counter()
            model.predict_on_batch(x)
            values.append(1000 * (time.perf_counter() - start))
    return [min(values[1:]) for values in times]


def scaling_row(size, repetitions):
    """One row of the first table."""
    options = dict(include_top=False, input_shape=(size, size, 3), global_strides=fixed_grid_strides(size))
    models = [keras_dualstream.DSNetT(inter_scale_alignment=aligned, **options) for aligned in (True, False)]
    rest, alignment, positions = model_macs(models[0])
    x = 255 * np.random.default_rng(0).random((1, size, size, 3)).astype("float32")
    aligned, plain = milliseconds(models, x, repetitions)
    cells = [size, f"{positions:,}", f"{rest / 1e9:.2f}", f"{alignment / 1e9:.3f}", f"{alignment / positions:,.0f}"]
    return [*cells, f"{plain:.0f}", f"{aligned:.0f}", f"{1e6 * (aligned - plain) / positions:,.0f}"]


def variant_row(variant):
    """One row of the second table."""
    rest, alignment, _ = model_macs(getattr(keras_dualstream, variant)())
    return [variant, f"{(rest + alignment) / 1e9:.2f}", f"{rest / 1e9:.2f}"]


def print_table(header, rows):
    """Prints a Markdown table."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def main():
    """Reads the arguments, counts and measures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    header = ["image", "local positions", "GMACs without", "GMACs of alignment", "MACs a position"]
    header += ["ms without", "ms with", "ns of alignment a position"]
    print_table(header, [scaling_row(size, arguments.repetitions) for size in arguments.sizes])
    print()
    print_table(["at 224", "GMACs with", "GMACs without"], [variant_row(variant) for variant in VARIANTS])


if __name__ == "__main__":
    main()
