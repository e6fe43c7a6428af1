"""Where DFvT's checkpoint keeps what."""

import keras
import numpy as np

from keras_dualstream.conversion.family import Family
from keras_dualstream.conversion.porters import Tensor
from keras_dualstream.conversion.porters import check_published
from keras_dualstream.conversion.porters import tensors_inside
from keras_dualstream.conversion.porters import tensors_of
from keras_dualstream.layers.context_module import BRANCHES
from keras_dualstream.ops.windows import relative_position_index
from keras_dualstream.ops.windows import window_and_shift
from keras_dualstream.ops.windows import window_mask

STEM = (("proj1", "norm1"), ("proj2", "norm"))

CONTEXT = {
    "conv1x1_1.0": "convolutions.0",
    "conv1x1_1.1": "norms.0",
    "conv1x1_1.3": "convolutions.1",
    "conv1x1_1.4": "norms.1",
    "conv1x1_1.6": "convolutions.2",
    "conv1x1_1.7": "norms.2",
    "conv1.0": "convolutions.3",
    "conv1.1": "norms.3",
    "conv1x1_2.0": "convolutions.4",
    "conv1x1_2.1": "norms.4",
}

SPATIAL = {"0": "neighbours", "1": "neighbours_norm", "2": "reduce", "3": "norm"}

BLOCK = {
    "norm1": "norm1",
    "attn.qkv": "attention.query_key_value",
    "attn.proj": "attention.projection",
    "norm2": "norm2",
    "mlp.fc1": "feed_forward.expand",
    "mlp.fc2": "feed_forward.reduce",
    "select.fc_spatial.0": "dane.position_norm",
    "select.fc_spatial.1": "dane.position",
    "select.fc_channel.0": "dane.squeeze",
    "select.fc_channel.2": "dane.squeeze_norm",
    "select.fc_channel.3": "dane.expand",
}

# The published networks are made for images of this size where the model takes any.
PUBLISHED_SIZE = 224


def derived_tensors(model):
    """The checkpoint's tensors that follow from the sizes of windows and images.

    Of each block: which bias belongs to which pair of a window's positions, and
    which pairs a shift keeps apart.

    Args:
        model: a `DFvTBackbone`, or an `ImageClassifier` on one.

    Returns:
        Dict from names to NumPy arrays.
    """
    tensors = {}
    config = model.backbone.get_config()
    shape = config["image_shape"]
    sizes = shape[:2] if config["data_format"] == "channels_last" else shape[1:]
    for stage, depth in enumerate(model.backbone.depths):
        map_size = [-(-(size or PUBLISHED_SIZE) // 2 ** min(stage + 3, 5)) for size in sizes]
        for index in range(depth):
            attention = model.get_layer(f"stage{stage + 1}_block{index + 1}").attention
            prefix, positions = f"layers.{stage}.blocks.{index}.", attention.window_size**2
            offsets = relative_position_index(attention.window_size).reshape(positions, positions)
            tensors[f"{prefix}attn.relative_position_index"] = offsets.astype("int64")
            window, shift = window_and_shift(*map_size, attention.window_size, attention.shift_size)
            if shift:
                whole = [-(-size // window) * window for size in map_size]
                mask = keras.ops.convert_to_numpy(window_mask(np.zeros((1, *whole, 1), "float32"), window, shift))
                tensors[f"{prefix}attn_mask"] = mask[:, 0]
    return tensors


def checkpoint_tensors(model):
    """Every tensor of the checkpoint that fits this DFvT.

    Args:
        model: a `DFvTBackbone` with the published modules and fusion, or an
            `ImageClassifier` on one.

    Returns:
        List of `Tensor`.

    Raises:
        ValueError: if no checkpoint has the model's layers.
    """
    backbone = model.backbone
    check_published(
        backbone,
        "DANE, the spatial module and both branches of the context module",
        dict(fusion="dane", context_branches=BRANCHES, spatial_module=True),
    )
    tensors = []
    for index, (projection, norm) in enumerate(STEM, 1):
        names = {projection: "projection", norm: "norm"}
        tensors += tensors_inside(model.get_layer(f"stem_embedding{index}"), "patch_embed.", names)
    for stage, depth in enumerate(backbone.depths):
        layers, name = f"layers.{stage}.", f"stage{stage + 1}"
        tensors += tensors_inside(model.get_layer(f"{name}_context"), f"convlayers.{stage}.", CONTEXT, pointwise=True)
        if stage < 3:
            spatial, prefix = model.get_layer(f"{name}_spatial"), f"multiresolution_conv.{stage}."
            tensors += tensors_inside(spatial, prefix, SPATIAL, pointwise=True)
            tensors += tensors_of(model.get_layer(f"{name}_norm"), f"{layers}downsample.norm")
            tensors += tensors_of(model.get_layer(f"{name}_projection"), f"{layers}downsample.reduction")
        for index in range(depth):
            block, prefix = model.get_layer(f"{name}_block{index + 1}"), f"{layers}blocks.{index}."
            tensors += tensors_inside(block, prefix, BLOCK)
            tensors.append(Tensor(f"{prefix}attn.relative_position_bias_table", block.attention.bias_table))
    if model is not backbone:
        tensors += tensors_of(model.get_layer("norm"), "norm")
        tensors += tensors_of(model.get_layer("classifier"), "head")
    return tensors


FAMILY = Family(checkpoint_tensors, ("norm.", "head."), derived_tensors=derived_tensors)
