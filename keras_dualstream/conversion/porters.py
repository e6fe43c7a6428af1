"""How each type of layer stores what PyTorch stores under which name, in which order of axes."""

import dataclasses
import functools

import keras
import numpy as np

from keras_dualstream.layers.group_normalization import GroupNormalization
from keras_dualstream.layers.id_conv import IDConv
from keras_dualstream.layers.layer_scale import LayerScale


@dataclasses.dataclass
class Tensor:
    """One tensor of a checkpoint and the variable that holds it here.

    Args:
        name: str. Name in the checkpoint.
        variable: the Keras variable.
        axes: tuple of int. Transposition from the checkpoint's axes to the
            variable's; `None` where they are the same.
        ones: int. How many axes of size 1 the checkpoint has behind those. Defaults to `0`.
    """

    name: str
    variable: keras.Variable
    axes: tuple = None
    ones: int = 0

    @property
    def shape(self):
        """The shape in the checkpoint."""
        shape = tuple(self.variable.shape)
        shape = shape if self.axes is None else tuple(shape[i] for i in np.argsort(self.axes))
        return shape + (1,) * self.ones

    def to_keras(self, array):
        """The checkpoint's array in the variable's order of axes."""
        array = np.reshape(array, self.shape[: len(self.shape) - self.ones])
        return array if self.axes is None else np.transpose(array, self.axes)

    def to_torch(self):
        """The variable's value in the checkpoint's order of axes."""
        array = keras.ops.convert_to_numpy(self.variable)
        array = array if self.axes is None else np.transpose(array, np.argsort(self.axes))
        return np.ascontiguousarray(array).reshape(self.shape)


def tensors_of(layer, prefix, pointwise=False):
    """The checkpoint's tensors of one layer.

    Args:
        layer: a Keras layer of a type listed here.
        prefix: str. Name of the module in the checkpoint; for a `LayerScale`,
            of the tensor itself where it has no bias.
        pointwise: bool. Whether the checkpoint has linear layers as 1×1
            convolutions. Defaults to `False`.

    Returns:
        List of `Tensor`.
    """
    if isinstance(layer, LayerScale) and not layer.use_bias:
        return [Tensor(prefix, layer.gamma)]
    for types, names in PORTED:
        if isinstance(layer, types):
            tensors = []
            for name, attribute, axes, *ones in names:
                ones = 2 if pointwise and (attribute, axes) == ("kernel", (1, 0)) else sum(ones)
                tensors.append(Tensor(f"{prefix}.{name}", getattr(layer, attribute), axes, ones))
            return [tensor for tensor in tensors if tensor.variable is not None]
    raise TypeError(f"No rule converts layers of this type. Received: {type(layer).__name__} for {prefix!r}")


def tensors_inside(layer, prefix, names, pointwise=False):
    """The checkpoint's tensors of the layers inside a layer.

    Args:
        layer: a Keras layer made of layers.
        prefix: str. What the names of its modules start with.
        names: dict from the module's name to the path of attributes.
        pointwise: bool. See `tensors_of`.

    Returns:
        List of `Tensor`.
    """
    tensors = []
    for module, path in names.items():
        part = functools.reduce(_part, path.split("."), layer)
        tensors += tensors_of(part, f"{prefix}{module}", pointwise)
    return tensors


def check_published(backbone, what, published):
    """Raises a `ValueError` unless a backbone has the options of the published ones.

    Args:
        backbone: a `Backbone`.
        what: str. What these options give, for the error.
        published: dict of options.
    """
    config = backbone.get_config()
    other = {name: config[name] for name, value in published.items() if config[name] != value}
    if other:
        raise ValueError(f"Checkpoints have {what}; build the model with {published}. Received: {other}")


def _part(layer, name):
    """An attribute of a layer, or an item of a list of layers."""
    return layer[int(name)] if name.isdigit() else getattr(layer, name)


# Depthwise comes before the other convolutions: PyTorch has (channels, 1, h, w), Keras (h, w, channels, 1).
PORTED = (
    (keras.layers.DepthwiseConv2D, (("weight", "kernel", (2, 3, 0, 1)), ("bias", "bias", None))),
    (keras.layers.Conv2D, (("weight", "kernel", (2, 3, 1, 0)), ("bias", "bias", None))),
    (keras.layers.Dense, (("weight", "kernel", (1, 0)), ("bias", "bias", None))),
    ((keras.layers.LayerNormalization, GroupNormalization), (("weight", "gamma", None), ("bias", "beta", None))),
    (LayerScale, (("weight", "gamma", None, 3), ("bias", "beta", None))),
    (IDConv, (("weight", "kernels", (0, 2, 3, 1)), ("bias", "biases", None))),
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
