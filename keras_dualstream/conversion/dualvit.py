"""Where Dual-ViT's checkpoint keeps what."""

from keras_dualstream.conversion.family import Family
from keras_dualstream.conversion.porters import Tensor
from keras_dualstream.conversion.porters import tensors_inside
from keras_dualstream.conversion.porters import tensors_of

DUAL_BLOCK = {
    "gamma1": "scale1",
    "gamma2": "scale2",
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.q": "attention.query",
    "attn.kv": "attention.key_value",
    "attn.proj": "attention.projection",
    "attn.proxy_ln": "semantic_norm",
    "mlp.fc1": "feed_forward.expand",
    "mlp.dwconv.dwconv": "feed_forward.depthwise",
    "mlp.fc2": "feed_forward.reduce",
}

SEMANTIC_PATHWAY = {
    "self_attention": {
        "attn.gamma1": "self_attention_scale",
        "attn.qkv_proxy.0": "self_attention_norm",
        "attn.qkv_proxy.1": "self_attention.query_key_value",
    },
    "cross_attention": {
        "attn.gamma2": "cross_attention_scale",
        "attn.q_proxy_ln": "cross_attention_norm",
        "attn.q_proxy": "cross_attention.query",
        "attn.kv_proxy": "cross_attention.key_value",
    },
    "feed_forward": {
        "attn.gamma3": "feed_forward_scale",
        "attn.p_ln": "feed_forward_norm",
        "attn.mlp_proxy.0": "feed_forward.expand",
        "attn.mlp_proxy.2": "feed_forward.reduce",
    },
}

MERGE_BLOCK = {
    "gamma1": "scale1",
    "gamma2": "scale2",
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.q": "attention.query",
    "attn.kv": "attention.key_value",
    "attn.proj": "attention.projection",
    "mlp.fc1": "feed_forward.expand",
    "mlp.dwconv.dwconv": "feed_forward.depthwise",
    "mlp.fc2": "feed_forward.reduce",
    "mlp.fc_proxy.0": "semantic_feed_forward.expand",
    "mlp.fc_proxy.2": "semantic_feed_forward.reduce",
}

CLASS_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.q": "attention.query",
    "attn.kv": "attention.key_value",
    "attn.proj": "attention.projection",
    "mlp.fc1": "feed_forward.expand",
    "mlp.fc2": "feed_forward.reduce",
}

SEMANTIC_TOKENS = {
    "q_embed.0": "query_norm",
    "q_embed.1": "query",
    "kv": "key_value",
    "proxy_ln": "norm",
    "se.0": "squeeze",
    "se.2": "select",
}


def checkpoint_tensors(model):
    """Every tensor of the checkpoint that fits this Dual-ViT.

    Args:
        model: a `DualViTBackbone`, or an `ImageClassifier` on one.

    Returns:
        List of `Tensor`.
    """
    backbone = model.backbone
    tensors = []
    for index in range(3):
        tensors += tensors_of(model.get_layer(f"stem_conv{index + 1}"), f"patch_embed1.conv.{3 * index}")
        tensors += tensors_of(model.get_layer(f"stem_norm{index + 1}"), f"patch_embed1.conv.{3 * index + 1}")
    semantic_tokens = model.get_layer("stage1_semantic_tokens")
    tensors.append(Tensor("q", semantic_tokens.queries))
    tensors += tensors_inside(semantic_tokens, "", SEMANTIC_TOKENS)
    for stage, depth in enumerate(backbone.depths, 1):
        tensors += _stage_tensors(model, backbone, stage, depth)
    if model is not backbone:
        tensors += tensors_inside(model.get_layer("class_block"), "post_network.0.", CLASS_BLOCK)
        tensors += tensors_of(model.get_layer("classifier"), "head")
        if "token_logits" in model.training_outputs:
            tensors += tensors_of(model.get_layer("token_classifier"), "aux_head")
    return tensors


def _stage_tensors(model, backbone, stage, depth):
    embedding = {"proj": "projection", "norm": "norm"}
    tensors = tensors_inside(model.get_layer(f"stage{stage}_embedding"), f"patch_embed{stage}.", embedding)
    if stage > 1:
        name = f"stage{stage}_semantic_embedding"
        tensors += tensors_of(model.get_layer(name), f"proxy_embed{stage}.proj_proxy.0")
        tensors += tensors_of(model.get_layer(f"{name}_norm"), f"proxy_embed{stage}.proj_proxy.1")
    for block in range(depth):
        layer, prefix = model.get_layer(f"stage{stage}_block{block + 1}"), f"block{stage}.{block}."
        tensors += tensors_inside(layer, prefix, DUAL_BLOCK if stage < 3 else MERGE_BLOCK)
        if stage < 3:
            for step in backbone.semantic_steps:
                tensors += tensors_inside(layer.semantic_pathway, prefix, SEMANTIC_PATHWAY[step])
    tensors += tensors_of(model.get_layer(f"stage{stage}_norm"), f"norm{stage}")
    if stage < 4:
        tensors += tensors_of(model.get_layer(f"stage{stage}_semantic_norm"), f"norm_proxy{stage}")
    return tensors


FAMILY = Family(checkpoint_tensors, ("post_network.", "head.", "aux_head."))
