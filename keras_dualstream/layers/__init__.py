"""Public layers: each usable alone in any functional model."""

from keras_dualstream.layers.attention import Attention
from keras_dualstream.layers.attention import SelfAttention
from keras_dualstream.layers.class_block import ClassBlock
from keras_dualstream.layers.depthwise_conv import DepthwiseConv2D
from keras_dualstream.layers.drop_path import DropPath
from keras_dualstream.layers.dual_block import DualBlock
from keras_dualstream.layers.dual_block import SemanticPathway
from keras_dualstream.layers.feed_forward import FeedForward
from keras_dualstream.layers.layer_scale import LayerScale
from keras_dualstream.layers.merge_block import MergeBlock
from keras_dualstream.layers.patch_embedding import PatchEmbedding
from keras_dualstream.layers.semantic_tokens import SemanticTokens

__all__ = [
    "Attention",
    "ClassBlock",
    "DepthwiseConv2D",
    "DropPath",
    "DualBlock",
    "FeedForward",
    "LayerScale",
    "MergeBlock",
    "PatchEmbedding",
    "SelfAttention",
    "SemanticPathway",
    "SemanticTokens",
]
