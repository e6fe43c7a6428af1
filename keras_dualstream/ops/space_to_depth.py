"""Small blocks of pixels laid side by side in the channels."""

import keras
from keras import ops

from keras_dualstream.ops.reshape import reshape


def space_to_depth(x):
    """The pixels of every 2×2 block as one position, column by column.

    In milliseconds for 8 × 56 × 56 × 128 on two cores:

    | | here | gradient | four slices | gradient |
    |---|---|---|---|---|
    | TensorFlow | 1.6 | 2.4 | 21.8 | 26.2 |
    | PyTorch | 0.82 | 1.7 | 0.49 | 7.4 |

    Args:
        x: tensor `(batch, height, width, channels)` of even height and width.

    Returns:
        Tensor `(batch, height / 2, width / 2, 4 · channels)`.
    """
    if keras.config.backend() == "jax":
        # XLA would fuse transpositions into every tap of the convolution that follows: 124 ms instead of 82 for
        # inference of DFvT-T, batch 8.
        return ops.concatenate([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], axis=-1)
    _, height, width, channels = ops.shape(x)
    if keras.config.backend() == "torch":
        x = reshape(x, (-1, height // 2, 2, width // 2, 2, channels))
        x = ops.transpose(x, (0, 1, 3, 4, 2, 5))
    else:
        # Four axes at a time: LiteRT transposes no more with its built-in ops.
        x = reshape(x, (-1, 2, width // 2, 2 * channels))
        x = reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, 2, 2, channels))
        x = ops.transpose(x, (0, 2, 1, 3))
    return reshape(x, (-1, height // 2, width // 2, 4 * channels))
