"""Loading a checkpoint whole or not at all, and writing one."""

import warnings

import numpy as np

from keras_dualstream.conversion import dfvt
from keras_dualstream.conversion import dsnet
from keras_dualstream.conversion import dualvit
from keras_dualstream.conversion import transxnet
from keras_dualstream.conversion.placement import COUNTER
from keras_dualstream.conversion.placement import assign
from keras_dualstream.conversion.placement import listed
from keras_dualstream.conversion.placement import named_arrays
from keras_dualstream.conversion.placement import place

# By the names of the backbones' classes, which stand on the floor above: builders load checkpoints.
FAMILIES = {
    "DFvTBackbone": dfvt.FAMILY,
    "DSNetBackbone": dsnet.FAMILY,
    "DualViTBackbone": dualvit.FAMILY,
    "TransXNetBackbone": transxnet.FAMILY,
}


def load_checkpoint(model, path_or_mapping, entry=None):
    """Assigns the tensors of the original checkpoint to a model of this package.

    Every tensor must have its place and every weight its tensor; otherwise
    nothing is changed. Left out are batch counters, buffers that follow from
    the shapes, the checkpoint's head when `model` is a backbone, and
    TransXNet's position bias when `model` was built with `position_bias=False`.

    Four things may differ, each with a warning. With another number of classes
    the last layers of the head keep their values. With images of one channel the
    first convolution's kernels are summed, with other than three they are
    repeated in turn and rescaled. Position tables of another `pretraining_size`
    are resized (bicubic); with the same, other image sizes need nothing here.
    DFvT's tables of smaller windows, which the original code makes for maps
    smaller than the window, go into the middle of the model's.

    Args:
        model: a model of one of the builders, or a backbone.
        path_or_mapping: path of a file that `read_checkpoint` reads, or dict from
            the names of the PyTorch or Paddle checkpoint to arrays (or PyTorch
            tensors) of any float dtype, also inside the dict that a training
            script saved.
        entry: str. The dict in the checkpoint that holds the weights, as in
            `read_checkpoint`. Defaults to `None`.

    Raises:
        TypeError: if `path_or_mapping` is neither a path nor a dict, or `model`
            none of this package's.
        ValueError: if the file cannot be read, or a tensor is missing, left over
            or of the wrong shape. The model is then as it was.

    Example:

    >>> model = keras_dualstream.DualViTBackbone(
    ...     embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), depths=(1, 1, 1, 1))
    >>> state_dict = keras_dualstream.conversion.to_torch_state_dict(model)
    >>> keras_dualstream.conversion.load_checkpoint(model, state_dict)
    """
    placements = place_checkpoint(model, path_or_mapping, entry)
    assign(placements)
    for note in sorted({placement.note for placement in placements} - {""}):
        names = [placement.name for placement in placements if placement.note == note]
        warnings.warn(f"Of the checkpoint, {note}: {listed(names)}.", stacklevel=2)


def place_checkpoint(model, path_or_mapping, entry=None):
    """Finds the place of every tensor of a checkpoint, without changing the model.

    Args:
        model: see `load_checkpoint`.
        path_or_mapping: see `load_checkpoint`.
        entry: see `load_checkpoint`. Defaults to `None`.

    Returns:
        List of `Placement`s, one for each weight of the model.

    Raises:
        TypeError: as `load_checkpoint`.
        ValueError: as `load_checkpoint`.
    """
    family = _family(model)
    return place(model, family, named_arrays(path_or_mapping, entry))


def to_torch_state_dict(model):
    """The model's weights under the names and shapes of the original PyTorch code.

    Args:
        model: a model of one of the builders, or a backbone.

    Returns:
        Dict from names to NumPy arrays. Batch counters, which a checkpoint also
        holds, are zero. DFvT's tables of relative positions are those of its
        `window_size`, also where the original code would have smaller ones.

    Raises:
        TypeError: if `model` is none of this package's.
        ValueError: if the original code has no such model (an ablation).

    Example:

    >>> model = keras_dualstream.DualViTBackbone(
    ...     embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), depths=(1, 1, 1, 1))
    >>> keras_dualstream.conversion.to_torch_state_dict(model)["patch_embed1.proj.weight"].shape
    (8, 32, 3, 3)
    """
    state_dict, family = {}, _family(model)
    for tensor in family.checkpoint_tensors(model):
        state_dict[tensor.name] = tensor.to_torch()
        if tensor.name.endswith(".running_var"):
            state_dict[tensor.name.removesuffix(".running_var") + COUNTER] = np.zeros((), "int64")
    return {**state_dict, **family.derived_tensors(model)}


def _family(model):
    backbone = getattr(model, "backbone", None)
    # A classifier has classes; a pyramid has a backbone too, and no checkpoint.
    if model is backbone or hasattr(model, "num_classes"):
        for base in type(backbone).__mro__:
            if base.__name__ in FAMILIES:
                return FAMILIES[base.__name__]
    raise TypeError(f"`model` must come from a builder or a backbone of keras_dualstream. Received: {type(model)}")
