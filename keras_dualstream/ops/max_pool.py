"""The maximum over windows."""

import functools

import keras
from keras import ops

from keras_dualstream.ops.compiler import jax_on_cpu
from keras_dualstream.ops.compiler import xla_on_cpu
from keras_dualstream.ops.jax_recomputation import recomputed
from keras_dualstream.ops.pytorch_kernels import pytorch_max_pool2d


def max_pool3x3(x, strides):
    """Largest value of each 3×3 neighbourhood; beyond the map's edge there is nothing.

    Args:
        x: float tensor `(batch, height, width, channels)`.
        strides: int.

    Returns:
        Tensor `(batch, ⌈height / strides⌉, ⌈width / strides⌉, channels)`.
    """
    if keras.config.backend() == "torch":
        return pytorch_max_pool2d(x, 3, strides, 1)
    if jax_on_cpu():
        # Autodiff would keep the map with its border, and where each maximum was.
        return recomputed(_maxima(strides))(x)
    if xla_on_cpu():
        return _maxima(strides)(x)
    return ops.max_pool(_with_border(x), 3, strides=strides, padding="valid", data_format="channels_last")


def _with_border(x):
    """The map's own edge adds nothing to a maximum over it and its neighbours, while -∞ has no place in int8."""
    return ops.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="symmetric")


@functools.cache
def _maxima(strides):
    """The largest of three rows, then of three columns.

    XLA fuses it: a third of the time of its window reduction on a CPU, half of
    that of its gradient (8 × 56 × 56 × 48 on one core: 1.2 ms instead of 3.7,
    10.7 instead of 23.9).
    """

    def largest(x):
        x = _with_border(x)
        rows = [x[:, first : first + ops.shape(x)[1] - 2 : strides] for first in range(3)]
        x = ops.maximum(ops.maximum(rows[0], rows[1]), rows[2])
        columns = [x[:, :, first : first + ops.shape(x)[2] - 2 : strides] for first in range(3)]
        return ops.maximum(ops.maximum(columns[0], columns[1]), columns[2])

    return largest
