"""Layers with the settings that PyTorch's have and the published networks rely on, channels last."""

from keras_dualstream.layers.depthwise_conv import DepthwiseConv2D
from keras_dualstream.layers.float64 import BatchNormalization
from keras_dualstream.layers.float64 import Dense
from keras_dualstream.layers.initializers import linear_initializer


def batch_normalization(name, dtype):
    """`BatchNorm2d`: ε = 1e-5, and a tenth of each batch's statistics goes into the running ones.

    As everywhere in Keras, the running variance takes the batch's own variance;
    PyTorch's takes `n / (n - 1)` times that of `n` values.

    Args:
        name: str. Name of the layer.
        dtype: dtype or dtype policy of the layer.

    Returns:
        The layer.
    """
    return BatchNormalization(momentum=0.9, epsilon=1e-5, name=name, dtype=dtype)


def linear(units, name, dtype, **options):
    """`Linear`, also as 1×1 convolution, drawn from a truncated normal.

    Args:
        units: int. Output channels.
        name: str. Name of the layer.
        dtype: dtype or dtype policy of the layer.
        **options: other arguments of `keras.layers.Dense`.

    Returns:
        The layer.
    """
    return Dense(units, kernel_initializer=linear_initializer(), name=name, dtype=dtype, **options)


def depthwise(kernel_size, name, dtype, padding="same", **options):
    """`Conv2d` with as many groups as channels, drawn from a truncated normal.

    Args:
        kernel_size: int.
        name: str. Name of the layer.
        dtype: dtype or dtype policy of the layer.
        padding: as `DepthwiseConv2D` takes it. Defaults to `"same"`.
        **options: other arguments of `DepthwiseConv2D`.

    Returns:
        The layer.
    """
    return DepthwiseConv2D(
        kernel_size,
        padding=padding,
        data_format="channels_last",
        depthwise_initializer=linear_initializer(),
        name=name,
        dtype=dtype,
        **options,
    )
