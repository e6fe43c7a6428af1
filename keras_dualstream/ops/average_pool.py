"""The mean over windows side by side."""

from keras import ops

from keras_dualstream.ops.compiler import converting_jax_to_tensorflow
from keras_dualstream.ops.compiler import xla_on_cpu
from keras_dualstream.ops.float64 import mean
from keras_dualstream.ops.reshape import reshape


def average_pool(x, window):
    """Mean of each window of a map that they tile; what is left of it below and on the right counts for nothing.

    The gradient of XLA's window reduction is one more, which takes longer on a CPU than any layer around it, and that
    of a mean along two axes is a repetition. Batch 8 on two cores (JAX 0.10.2), in milliseconds:

    | forward; with the gradient | as a mean | XLA's window reduction |
    |---|---|---|
    | 56 × 56 × 64 to 8 × 8 | 0.25; 0.44 | 0.31; 40.4 |
    | 56 × 56 × 48 to 7 × 7 | 0.19; 0.33 | 0.25; 31.3 |
    | 28 × 28 × 96 to 7 × 7 | 0.07; 0.14 | 0.07; 4.6 |
    | 14 × 14 × 224 to 7 × 7 | 0.07; 0.10 | 0.07; 0.11 |

    TensorFlow's own kernels take less time for their window reduction than for such a mean.

    Args:
        x: float tensor `(batch, height, width, channels)`.
        window: pair of int. Rows and columns of a window.

    Returns:
        Tensor `(batch, ⌊height / rows⌋, ⌊width / columns⌋, channels)`.
    """
    if _takes_means(x, window):
        return _means(x, window)
    return ops.average_pool(x, window, window, data_format="channels_last")


def _takes_means(x, window):
    fits = all(isinstance(size, int) and size >= least for size, least in zip(x.shape[1:], (*window, 1), strict=True))
    return fits and xla_on_cpu() and not converting_jax_to_tensorflow()


def _means(x, window):
    (rows, columns), channels = (size // step for size, step in zip(x.shape[1:3], window, strict=True)), x.shape[3]
    tiled = x[:, : rows * window[0], : columns * window[1]]
    return mean(reshape(tiled, (-1, rows, window[0], columns, window[1], channels)), axis=(2, 4))
