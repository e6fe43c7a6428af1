"""How each type of layer stores what PyTorch stores under which name, in which order of axes."""

import dataclasses

import keras
import numpy as np

from keras_dualstream.layers.layer_scale import LayerScale


@dataclasses.dataclass
class Tensor:
    """One tensor of a checkpoint and the variable that holds it here.

    Args:
        name: str. Name in the checkpoint.
        variable: the Keras variable.
        axes: tuple of int. Transposition from the checkpoint's axes to the
            variable's; `None` where they are the same.
    """

    name: str
    variable: keras.Variable
    axes: tuple = None

    @property
    def shape(self):
        """The shape in the checkpoint."""
        shape = self.variable.shape
        return tuple(shape) if self.axes is None else tuple(shape[i] for i in np.argsort(self.axes))

    def to_keras(self, array):
        """The checkpoint's array in the variable's order of axes."""
        return array if self.axes is None else np.transpose(array, self.axes)

    def to_torch(self):
        """The variable's value in the checkpoint's order of axes."""
        array = keras.ops.convert_to_numpy(self.variable)
        return array if self.axes is None else np.ascontiguousarray(np.transpose(array, np.argsort(self.axes)))


def tensors_of(layer, prefix):
    """The checkpoint's tensors of one layer.

    Args:
        layer: a Keras layer of a type listed here.
        prefix: str. Name of the module in the checkpoint; for a `LayerScale`,
            of the tensor itself.

    Returns:
        List of `Tensor`.
    """
    if isinstance(layer, LayerScale):
        return [Tensor(prefix, layer.gamma)]
    for types, names in PORTED:
        if isinstance(layer, types):
            tensors = [Tensor(f"{prefix}.{name}", getattr(layer, attribute), axes) for name, attribute, axes in names]
            return [tensor for tensor in tensors if tensor.variable is not None]
    raise TypeError(f"No rule converts layers of this type. Received: {type(layer).__name__} for {prefix!r}")


# Depthwise comes before the other convolutions: PyTorch has (channels, 1, h, w), Keras (h, w, channels, 1).
PORTED = (
    (keras.layers.DepthwiseConv2D, (("weight", "kernel", (2, 3, 0, 1)), ("bias", "bias", None))),
    (keras.layers.Conv2D, (("weight", "kernel", (2, 3, 1, 0)), ("bias", "bias", None))),
    (keras.layers.Dense, (("weight", "kernel", (1, 0)), ("bias", "bias", None))),
    (keras.layers.LayerNormalization, (("weight", "gamma", None), ("bias", "beta", None))),
    (
        keras.layers.BatchNormalization,
        (
            ("weight", "gamma", None),
            ("bias", "beta", None),
            ("running_mean", "moving_mean", None),
            ("running_var", "moving_variance", None),
        ),
    ),
)
