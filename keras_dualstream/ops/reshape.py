"""Tensors in another shape."""

import keras
from keras import ops


def reshape(x, shape):
    """`keras.ops.reshape`, on PyTorch by the tensor's own.

    Keras looks through the shape for symbolic tensors at every call, which takes 19 µs there instead of 1: a
    fiftieth of a prediction of DFvT-T, batch 8.

    Args:
        x: tensor.
        shape: tuple of int or scalar tensors, one of them possibly -1.

    Returns:
        Tensor of that shape.
    """
    if keras.config.backend() == "torch" and ops.is_tensor(x):
        return x.reshape(shape)
    return ops.reshape(x, shape)
