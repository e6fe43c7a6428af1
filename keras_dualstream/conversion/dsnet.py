"""Where DS-Net's checkpoint keeps what."""

from keras_dualstream.conversion.family import Family
from keras_dualstream.conversion.porters import tensors_inside
from keras_dualstream.conversion.porters import tensors_of

# Convolutions and normalisations; the checkpoint has these linear layers as 1×1 convolutions.
BLOCK = {
    "pos_embed": "position",
    "norm1": "norm1",
    "conv1": "input_projection",
    "conv2": "output_projection",
    "norm2": "norm2",
    "mlp.fc1": "feed_forward.expand",
    "mlp.fc2": "feed_forward.reduce",
}

LOCAL_CONVOLUTION = {"norm_conv1": "propagation.local_norm", "conv": "propagation.convolution"}

GLOBAL_ATTENTION = {"norm_sa1": "propagation.global_norm", "channel_up": "propagation.attention.query_key_value"}

LOCAL_ALIGNMENT = {
    "norm_conv2": "alignment.local_norm",
    "cross_channel_up_conv": "alignment.local_projection",
}

GLOBAL_ALIGNMENT = {
    "norm_sa2": "alignment.global_norm",
    "cross_channel_up_sa": "alignment.global_projection",
    "fuse_channel_conv": "alignment.local_output",
    "fuse_channel_sa": "alignment.global_output",
}


def checkpoint_tensors(model):
    """Every tensor of the checkpoint that fits this DS-Net.

    Args:
        model: a `DSNetBackbone` that aligns its streams both ways or not at
            all, or an `ImageClassifier` on one.

    Returns:
        List of `Tensor`.

    Raises:
        ValueError: if no checkpoint has the model's layers.
    """
    backbone = model.backbone
    tensors = []
    for stage, depth in enumerate(backbone.depths, 1):
        tensors += tensors_of(model.get_layer(f"stage{stage}_embedding").projection, f"patch_embed{stage}.proj")
        for index in range(depth):
            block = model.get_layer(f"stage{stage}_block{index + 1}")
            tensors += _block_tensors(block, f"blocks{stage}.{index}.")
    if model is not backbone:
        tensors += tensors_of(model.get_layer("norm"), "norm")
        tensors += tensors_of(model.get_layer("classifier"), "head")
    return tensors


def _block_tensors(block, prefix):
    convolutions, linears = dict(BLOCK), {}
    if block.propagation.convolution is not None:
        convolutions.update(LOCAL_CONVOLUTION)
    if block.propagation.attention is not None:
        linears.update(GLOBAL_ATTENTION)
    if block.alignment is not None:
        _check_both_ways(block.alignment)
        convolutions.update(LOCAL_ALIGNMENT)
        linears.update(GLOBAL_ALIGNMENT)
    return [*tensors_inside(block, prefix, convolutions, pointwise=True), *tensors_inside(block, prefix, linears)]


def _check_both_ways(alignment):
    if not (alignment.local_to_global and alignment.global_to_local):
        raise ValueError(
            "Checkpoints of DS-Net align both ways or not at all. Received: "
            f"local_to_global={alignment.local_to_global}, global_to_local={alignment.global_to_local}"
        )


FAMILY = Family(checkpoint_tensors, ("norm.", "head."))
