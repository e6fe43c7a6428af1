"""Public layers: each usable alone in any functional model."""

from keras_dualstream.layers.attention import Attention
from keras_dualstream.layers.attention import SelfAttention
from keras_dualstream.layers.class_block import ClassBlock
from keras_dualstream.layers.co_attention import CoAttention
from keras_dualstream.layers.context_module import ContextModule
from keras_dualstream.layers.d_mixer import DMixer
from keras_dualstream.layers.dane import DANE
from keras_dualstream.layers.depthwise_conv import DepthwiseConv2D
from keras_dualstream.layers.dfvt_block import DFvTBlock
from keras_dualstream.layers.drop_path import DropPath
from keras_dualstream.layers.ds_block import DSBlock
from keras_dualstream.layers.dual_block import DualBlock
from keras_dualstream.layers.dual_block import SemanticPathway
from keras_dualstream.layers.dynamic_conv import DDWConv
from keras_dualstream.layers.dynamic_conv import DyConv
from keras_dualstream.layers.feed_forward import FeedForward
from keras_dualstream.layers.group_normalization import GroupNormalization
from keras_dualstream.layers.id_conv import IDConv
from keras_dualstream.layers.intra_scale_propagation import IntraScalePropagation
from keras_dualstream.layers.layer_scale import LayerScale
from keras_dualstream.layers.merge_block import MergeBlock
from keras_dualstream.layers.ms_ffn import MSFFN
from keras_dualstream.layers.osra import OSRA
from keras_dualstream.layers.osra import PositionBias
from keras_dualstream.layers.patch_embedding import PatchEmbedding
from keras_dualstream.layers.semantic_tokens import SemanticTokens
from keras_dualstream.layers.spatial_module import SpatialModule
from keras_dualstream.layers.token_enhancer import SqueezedTokenEnhancer
from keras_dualstream.layers.top_down_addition import TopDownAddition
from keras_dualstream.layers.transxnet_block import TransXNetBlock
from keras_dualstream.layers.window_attention import WindowAttention

__all__ = [
    "Attention",
    "ClassBlock",
    "CoAttention",
    "ContextModule",
    "DANE",
    "DDWConv",
    "DFvTBlock",
    "DMixer",
    "DSBlock",
    "DepthwiseConv2D",
    "DropPath",
    "DualBlock",
    "DyConv",
    "FeedForward",
    "GroupNormalization",
    "IDConv",
    "IntraScalePropagation",
    "LayerScale",
    "MSFFN",
    "MergeBlock",
    "OSRA",
    "PatchEmbedding",
    "PositionBias",
    "SelfAttention",
    "SemanticPathway",
    "SemanticTokens",
    "SpatialModule",
    "SqueezedTokenEnhancer",
    "TopDownAddition",
    "TransXNetBlock",
    "WindowAttention",
]
