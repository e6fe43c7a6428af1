"""Paddle's names and layouts to PyTorch's, which the rest of the conversion knows."""

import numpy as np

STATISTICS = {"._mean": ".running_mean", "._variance": ".running_var"}


def is_paddle(names):
    """Whether tensors of these names are Paddle's: told by the statistics of its batch normalisation."""
    return any(name.endswith("._variance") for name in names) and not any(
        name.endswith(".running_var") for name in names
    )


def from_paddle(arrays, tensors):
    """The arrays of a Paddle checkpoint under the names and with the axes of PyTorch.

    Args:
        arrays: dict from names to arrays.
        tensors: dict from PyTorch's names to `Tensor`s, which tell the kernels of linear layers.

    Returns:
        Dict from names to arrays.
    """
    renamed = {}
    for name, array in arrays.items():
        for paddle, torch in STATISTICS.items():
            if name.endswith(paddle):
                name = name.removesuffix(paddle) + torch
        # Paddle keeps kernels of linear layers as (in, out); convolutions are the same.
        is_linear = name in tensors and tensors[name].axes == (1, 0) and not tensors[name].ones
        renamed[name] = np.transpose(array) if is_linear and np.ndim(array) == 2 else array
    return renamed
