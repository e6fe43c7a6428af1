"""Where each tensor of a checkpoint goes in a model, and whether all of them do."""

import dataclasses
import os
import re

import keras
import numpy as np

from keras_dualstream.conversion.adaptation import adapt_stem
from keras_dualstream.conversion.adaptation import centre_table
from keras_dualstream.conversion.adaptation import is_position_table
from keras_dualstream.conversion.adaptation import is_small_window_table
from keras_dualstream.conversion.adaptation import is_stem
from keras_dualstream.conversion.adaptation import other_classes
from keras_dualstream.conversion.adaptation import resize_table
from keras_dualstream.conversion.paddle_names import from_paddle
from keras_dualstream.conversion.paddle_names import is_paddle
from keras_dualstream.conversion.reader.read_checkpoint import read_checkpoint
from keras_dualstream.conversion.reader.state_dict import find_state_dict
from keras_dualstream.conversion.reader.state_dict import without_wrappers

# PyTorch counts batches beside each BatchNorm; nothing reads the count at a fixed momentum.
COUNTER = ".num_batches_tracked"

# Buffers that a checkpoint holds beside the weights and that follow from the shapes.
DERIVED = (".relative_position_index", ".attn_mask")


RESIZED = (
    "position tables were resized to the model's `pretraining_size` "
    "(one built with that of the checkpoint keeps them and resizes them on the way)"
)


@dataclasses.dataclass
class Placement:
    """Where one tensor of a checkpoint goes.

    Args:
        name: str. Name in the checkpoint.
        variable: the Keras variable.
        array: its new value; `None` where it keeps its own.
        note: str. What was done to the tensor beside its order of axes; empty for nothing.
    """

    name: str
    variable: keras.Variable
    array: np.ndarray
    note: str = ""


def named_arrays(path_or_mapping, entry=None):
    """The arrays of a checkpoint by name.

    Args:
        path_or_mapping: path, or dict of arrays or around one; see `load_checkpoint`.
        entry: str. Which dict; see `load_checkpoint`. Defaults to `None`.

    Returns:
        Dict from names to arrays.

    Raises:
        TypeError: if it is neither, or has other names than text.
        ValueError: if the file cannot be read, or the dict holds no arrays.
    """
    if isinstance(path_or_mapping, (str, os.PathLike)):
        return read_checkpoint(path_or_mapping, entry)
    if not hasattr(path_or_mapping, "items"):
        raise TypeError(
            "`path_or_mapping` must be the path of a checkpoint, or a dict from names to arrays. "
            f"Received: {type(path_or_mapping)}"
        )
    arrays = dict(path_or_mapping)
    if any(isinstance(value, dict) for value in arrays.values()):
        try:
            arrays = find_state_dict(arrays, lambda value: value if hasattr(value, "shape") else None, entry)
        except ValueError as error:
            raise ValueError(f"`path_or_mapping` cannot be used: {error}") from error
    for name in arrays:
        if not isinstance(name, str):
            raise TypeError(f"`path_or_mapping` must have the names of tensors as keys. Received: {name!r}")
    return without_wrappers(arrays)


def place(model, family, arrays):
    """Finds the place of every tensor, without changing the model.

    Args:
        model: a model of one of the builders, or a backbone.
        family: its `Family`.
        arrays: dict from names to arrays.

    Returns:
        List of `Placement`s, one for each weight of the model.

    Raises:
        ValueError: if the arrays do not fit the model.
    """
    tensors = {tensor.name: tensor for tensor in family.checkpoint_tensors(model)}
    if is_paddle(arrays):
        arrays = from_paddle(arrays, tensors)
    left_out = family.head_prefixes if model is model.backbone else ()
    left_out += family.left_out_prefixes(model.backbone)
    surplus = _surplus(arrays, tensors)
    arrays = {name: array for name, array in arrays.items() if name not in surplus and not name.startswith(left_out)}
    # Converted before the first is assigned: a tensor that is no array leaves the model as it was.
    arrays = {name: _to_numpy(array, name) if name in tensors else array for name, array in arrays.items()}
    shapes = {name: tuple(np.shape(array)) for name, array in arrays.items()}
    new, classes = other_classes(model, family, tensors, shapes)
    notes = dict.fromkeys(new, f"the {classes} classes are not the model's, whose layers keep their values")
    for name in tensors.keys() & arrays.keys() - notes.keys():
        arrays[name], notes[name] = _adapted(name, arrays[name], tensors[name].shape, family)
    _check({name: tensor for name, tensor in tensors.items() if name not in new}, arrays, new)
    return [
        Placement(
            name,
            tensor.variable,
            None if name in new else tensor.to_keras(arrays[name]).astype(tensor.variable.dtype, copy=False),
            notes[name],
        )
        for name, tensor in tensors.items()
    ]


def assign(placements):
    """Gives the variables their new values."""
    for placement in placements:
        if placement.array is not None:
            # A copy: JAX may take an array's memory as its own, and that of a file's tensors may be shared.
            placement.variable.assign(np.array(placement.array))


def _surplus(arrays, tensors):
    """The names of what a checkpoint holds beside the weights."""
    counters = {name for name in arrays if name.endswith(COUNTER)}
    modules = {name[: match.start()] for name in tensors for match in re.finditer(r"\.", name)}
    return {name for name in counters if name.removesuffix(COUNTER) + ".running_var" in arrays} | {
        name for name in arrays if name.endswith(DERIVED) and name.rpartition(".")[0] in modules
    }


def _adapted(name, array, shape, family):
    """The array in `shape` where a rule leads there, and what the rule did."""
    if array.shape == shape:
        return array, ""
    if is_stem(array, shape):
        return adapt_stem(array, shape[1]), f"kernels for 3 image channels were made to fit {shape[1]}"
    if is_position_table(name, array, shape, family):
        return resize_table(array, *shape[2:]), RESIZED
    if is_small_window_table(name, array, shape):
        return centre_table(array, shape), "tables of smaller windows lie in the middle of the model's"
    return array, ""


def _check(tensors, arrays, new):
    problems = []
    missing = [name for name in tensors if name not in arrays]
    if missing:
        problems.append(f"missing in the checkpoint: {listed(missing)}")
    left_over = [name for name in arrays if name not in tensors and name not in new]
    if left_over:
        problems.append(f"in the checkpoint but not in the model: {listed(left_over)}")
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
        problems.append(f"of the wrong shape: {listed(shapes)}")
    if problems:
        raise ValueError(f"The checkpoint does not fit the model, which is unchanged: {'; '.join(problems)}.")


def _to_numpy(array, name):
    """The tensor as an array of numbers."""
    if hasattr(array, "detach"):
        # A PyTorch tensor; NumPy knows no bfloat16.
        array = array.detach().cpu()
        array = array.float() if str(array.dtype) == "torch.bfloat16" else array
    array = np.asarray(array)
    # Kind "V" without fields is how NumPy sees bfloat16.
    if array.dtype.kind not in "fiuV" or array.dtype.names is not None:
        raise ValueError(f"The tensor {name!r} must be numeric. Received: dtype={array.dtype}")
    try:
        return array.astype("float32") if array.dtype.kind == "V" else array
    except (TypeError, ValueError) as error:
        raise ValueError(f"The tensor {name!r} must be numeric. Received: dtype={array.dtype}") from error


def listed(names, most=8):
    """The first names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
