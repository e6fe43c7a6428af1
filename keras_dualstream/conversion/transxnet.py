"""Where TransXNet's checkpoint keeps what."""

from keras_dualstream.conversion.family import Family
from keras_dualstream.conversion.porters import Tensor
from keras_dualstream.conversion.porters import check_published
from keras_dualstream.conversion.porters import tensors_inside
from keras_dualstream.conversion.porters import tensors_of

EMBEDDING = {"proj.conv": "projection", "proj.bn": "norm"}

BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "layer_scale_1": "scale1",
    "layer_scale_2": "scale2",
    "mlp.fc1.0": "feed_forward.expand",
    "mlp.fc1.2": "feed_forward.norm1",
    "mlp.norm": "feed_forward.norm2",
    "mlp.fc2.0": "feed_forward.reduce",
    "mlp.fc2.1": "feed_forward.norm3",
    "token_mixer.global_unit.q": "mixer.attention.query",
    "token_mixer.global_unit.kv": "mixer.attention.key_value",
    "token_mixer.global_unit.local_conv": "mixer.attention.local",
}

POSITION_ENCODING = {"pos_embed": "encoding"}

REDUCTION = {
    "token_mixer.global_unit.sr.0.conv": "mixer.attention.reduce",
    "token_mixer.global_unit.sr.0.bn": "mixer.attention.reduce_norm",
    "token_mixer.global_unit.sr.1.conv": "mixer.attention.refine",
    "token_mixer.global_unit.sr.1.bn": "mixer.attention.refine_norm",
}

ID_CONV = {
    "token_mixer.local_unit": "mixer.local",
    "token_mixer.local_unit.proj.0.conv": "mixer.local.squeeze",
    "token_mixer.local_unit.proj.0.bn": "mixer.local.norm",
    "token_mixer.local_unit.proj.1": "mixer.local.expand",
}

TOKEN_ENHANCER = {
    "token_mixer.proj.0": "mixer.fusion.depthwise",
    "token_mixer.proj.2": "mixer.fusion.norm1",
    "token_mixer.proj.3": "mixer.fusion.squeeze",
    "token_mixer.proj.5": "mixer.fusion.norm2",
    "token_mixer.proj.6": "mixer.fusion.expand",
    "token_mixer.proj.7": "mixer.fusion.norm3",
}


def left_out_prefixes(backbone):
    """How the names begin that a backbone leaves out by its options: the position bias without it."""
    return () if backbone.position_bias else ("relative_pos_enc.",)


def checkpoint_tensors(model):
    """Every tensor of the checkpoint that fits this TransXNet.

    Args:
        model: a `TransXNetBackbone` with the published local operator, token
            enhancer and channel ratio, or an `ImageClassifier` on one.

    Returns:
        List of `Tensor`.

    Raises:
        ValueError: if no checkpoint has the model's layers.
    """
    backbone = model.backbone
    check_published(
        backbone,
        "IDConv, the squeezed token enhancer and attention in half of the channels",
        dict(local_operator="id_conv", token_enhancer=True, attention_ratio=0.5),
    )
    tensors = []
    for stage, depth in enumerate(backbone.depths):
        # The checkpoint counts embeddings and stages alike in one list.
        embedding = f"network.{2 * stage - 1}." if stage else "patch_embed."
        tensors += tensors_inside(model.get_layer(f"stage{stage + 1}_embedding"), embedding, EMBEDDING)
        if backbone.position_bias:
            bias = model.get_layer(f"stage{stage + 1}_position_bias")
            tensors.append(Tensor(f"relative_pos_enc.{stage}", bias.table))
        for index in range(depth):
            block = model.get_layer(f"stage{stage + 1}_block{index + 1}")
            tensors += _block_tensors(block, f"network.{2 * stage}.{index}.")
    if model is not backbone:
        tensors += tensors_of(model.get_layer("norm"), "classifier.0")
        tensors += tensors_of(model.get_layer("classifier"), "classifier.2", pointwise=True)
    return tensors


def _block_tensors(block, prefix):
    names = {**BLOCK, **ID_CONV, **TOKEN_ENHANCER}
    names.update(POSITION_ENCODING if block.position_encoding else {})
    names.update(REDUCTION if block.sr_ratio > 1 else {})
    for index in range(len(block.scales)):
        names[f"mlp.dwconv.proj.{index}"] = f"feed_forward.depthwise.{index}"
    return tensors_inside(block, prefix, names, pointwise=True)


FAMILY = Family(
    checkpoint_tensors, ("classifier.",), left_out_prefixes=left_out_prefixes, position_tables=("relative_pos_enc.",)
)
