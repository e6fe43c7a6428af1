"""Loading a checkpoint whole or not at all, and writing one."""

import numpy as np

from keras_dualstream.conversion import dsnet
from keras_dualstream.conversion import dualvit
from keras_dualstream.conversion import transxnet
from keras_dualstream.models.backbone import Backbone
from keras_dualstream.models.classifier import ImageClassifier
from keras_dualstream.models.dsnet import DSNetBackbone
from keras_dualstream.models.dualvit import DualViTBackbone
from keras_dualstream.models.transxnet import TransXNetBackbone

FAMILIES = {DSNetBackbone: dsnet, DualViTBackbone: dualvit, TransXNetBackbone: transxnet}

# PyTorch counts batches beside each BatchNorm; nothing reads the count at a fixed momentum.
COUNTER = ".num_batches_tracked"


def load_checkpoint(model, mapping):
    """Assigns the tensors of the original PyTorch checkpoint to a model of this package.

    Every tensor must have its place and every weight its tensor; otherwise
    nothing is changed. Batch counters are left out, and so are the checkpoint's
    head when `model` is a backbone and TransXNet's position bias when `model` was
    built with `position_bias=False`.

    Args:
        model: a model of one of the builders, or a backbone.
        mapping: dict from the names of the PyTorch checkpoint to arrays (or
            PyTorch tensors) of any float dtype.

    Raises:
        TypeError: if `mapping` is no dict or `model` none of this package's.
        ValueError: if a tensor is missing, left over or of the wrong shape. The
            model is then as it was.

    Example:

    >>> model = keras_dualstream.DualViTBackbone(
    ...     embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), depths=(1, 1, 1, 1))
    >>> state_dict = keras_dualstream.conversion.to_torch_state_dict(model)
    >>> keras_dualstream.conversion.load_checkpoint(model, state_dict)
    """
    if not hasattr(mapping, "items"):
        raise TypeError(
            "`mapping` must be a dict from names to arrays; read a file with `torch.load` first. "
            f"Received: {type(mapping)}"
        )
    family = _family(model)
    for name in mapping:
        if not isinstance(name, str):
            raise TypeError(f"`mapping` must have the names of tensors as keys. Received: {name!r}")
    counters = {name for name in mapping if name.endswith(COUNTER)}
    counters = {name for name in counters if name.removesuffix(COUNTER) + ".running_var" in mapping}
    arrays = {name: array for name, array in mapping.items() if name not in counters}
    left_out = family.HEAD_PREFIXES if isinstance(model, Backbone) else ()
    left_out += family.left_out_prefixes(model.backbone)
    arrays = {name: array for name, array in arrays.items() if not name.startswith(left_out)}
    tensors = {tensor.name: tensor for tensor in family.checkpoint_tensors(model)}
    _check(tensors, arrays)
    # Converted before the first is assigned: a tensor that is no array leaves the model as it was.
    converted = [
        (tensor.variable, tensor.to_keras(_to_numpy(arrays[name], tensor))) for name, tensor in tensors.items()
    ]
    for variable, array in converted:
        variable.assign(array)


def to_torch_state_dict(model):
    """The model's weights under the names and shapes of the original PyTorch code.

    Args:
        model: a model of one of the builders, or a backbone.

    Returns:
        Dict from names to NumPy arrays. Batch counters, which a checkpoint also
        holds, are zero.

    Raises:
        TypeError: if `model` is none of this package's.
        ValueError: if the original code has no such model (an ablation).

    Example:

    >>> model = keras_dualstream.DualViTBackbone(
    ...     embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), depths=(1, 1, 1, 1))
    >>> keras_dualstream.conversion.to_torch_state_dict(model)["patch_embed1.proj.weight"].shape
    (8, 32, 3, 3)
    """
    state_dict = {}
    for tensor in _family(model).checkpoint_tensors(model):
        state_dict[tensor.name] = tensor.to_torch()
        if tensor.name.endswith(".running_var"):
            state_dict[tensor.name.removesuffix(".running_var") + COUNTER] = np.zeros((), "int64")
    return state_dict


def _family(model):
    for backbone_class, family in FAMILIES.items():
        if isinstance(model, (Backbone, ImageClassifier)) and isinstance(model.backbone, backbone_class):
            return family
    raise TypeError(f"`model` must come from a builder or a backbone of keras_dualstream. Received: {type(model)}")


def _check(tensors, arrays):
    problems = []
    missing = [name for name in tensors if name not in arrays]
    if missing:
        problems.append(f"missing in the checkpoint: {_listed(missing)}")
    left_over = [name for name in arrays if name not in tensors]
    if left_over:
        problems.append(f"in the checkpoint but not in the model: {_listed(left_over)}")
        if any(name.startswith("aux_head.") for name in left_over):
            problems.append("the checkpoint has a token-label head: build the model with `token_label_head=True`")
        if any(".cross_channel_up" in name for name in left_over):
            problems.append("the checkpoint aligns its streams: build the model with `inter_scale_alignment=True`")
    shapes = [
        f"{name} {tuple(np.shape(arrays[name]))} instead of {tensor.shape}"
        for name, tensor in tensors.items()
        if name in arrays and tuple(np.shape(arrays[name])) != tensor.shape
    ]
    if shapes:
        problems.append(f"of the wrong shape: {_listed(shapes)}")
    if problems:
        raise ValueError(f"The checkpoint does not fit the model, which is unchanged: {'; '.join(problems)}.")


def _listed(names, most=8):
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _to_numpy(array, tensor):
    """The array in the dtype of the variable that will hold it."""
    if hasattr(array, "detach"):
        # A PyTorch tensor; NumPy knows no bfloat16.
        array = array.detach().cpu()
        array = array.float() if str(array.dtype) == "torch.bfloat16" else array
    array = np.asarray(array)
    # Kind "V" without fields is how NumPy sees bfloat16.
    if array.dtype.kind not in "fiuV" or array.dtype.names is not None:
        raise ValueError(f"The tensor {tensor.name!r} must be numeric. Received: dtype={array.dtype}")
    try:
        return array.astype(tensor.variable.dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The tensor {tensor.name!r} must be numeric. Received: dtype={array.dtype}") from error
