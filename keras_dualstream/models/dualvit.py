"""Dual-ViT: pixels and semantic tokens in two pathways, then merged."""

import functools

import keras

from keras_dualstream.layers.class_block import ClassBlock
from keras_dualstream.layers.convolution import Conv2D
from keras_dualstream.layers.drop_path import drop_path_rates
from keras_dualstream.layers.dual_block import SEMANTIC_STEPS
from keras_dualstream.layers.dual_block import DualBlock
from keras_dualstream.layers.float64 import LayerNormalization
from keras_dualstream.layers.initializers import conv_initializer
from keras_dualstream.layers.merge_block import MergeBlock
from keras_dualstream.layers.patch_embedding import PatchEmbedding
from keras_dualstream.layers.pytorch_defaults import batch_normalization
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.layers.semantic_tokens import SemanticTokens
from keras_dualstream.models.backbone import Backbone
from keras_dualstream.models.backbone import check_per_stage
from keras_dualstream.models.classifier import make_builder
from keras_dualstream.models.image_input import ImageOptions

VARIANTS = {
    "DualViTS": dict(
        stem_dim=32, embed_dims=(64, 128, 320, 448), num_heads=(2, 4, 10, 14), depths=(3, 4, 6, 3), drop_path_rate=0.15
    ),
    "DualViTB": dict(
        stem_dim=64, embed_dims=(64, 128, 320, 512), num_heads=(2, 4, 10, 16), depths=(3, 4, 15, 3), drop_path_rate=0.15
    ),
    "DualViTL": dict(
        stem_dim=64, embed_dims=(96, 192, 384, 512), num_heads=(3, 6, 12, 16), depths=(3, 6, 21, 3), drop_path_rate=0.3
    ),
}

# The stem's two stride-2 convolutions must leave the 7 rows that one semantic token pools.
MINIMUM_SIZE = 25


@keras.saving.register_keras_serializable(package="keras_dualstream")
class DualViTBackbone(Backbone):
    """Dual-ViT without its head.

    A convolutional stem of stride 4, two stages of Dual blocks in which pixels
    and a few semantic tokens exchange what they know at linear cost, and two
    stages of Merge blocks in which both attend together.

    Args:
        stem_dim: int. Channels of the stem. Defaults to `32`.
        embed_dims: tuple of four int. Channels per stage. Defaults to `(64, 128, 320, 448)`.
        num_heads: tuple of four int. Attention heads per stage. Defaults to `(2, 4, 10, 14)`.
        depths: tuple of four int. Blocks per stage. Defaults to `(3, 4, 6, 3)`.
        mlp_ratios: tuple of four float. Ratio of the feed-forward networks per
            stage; every second block of stage 3 has one less. Defaults to `(8, 8, 4, 3)`.
        drop_path_rate: float. Stochastic depth, rising linearly from 0 at the
            first block to this rate at the last. Defaults to `0.0`.
        layer_scale_init_value: float. Starting value of every γ. Defaults to `1e-6`.
        semantic_steps: tuple of str. `steps` of every `SemanticPathway`.
        remat: bool. Whether training recomputes the blocks in the backward pass
            instead of keeping their activations. Defaults to `False`.
        name: str. Name of the model. Defaults to `None`.
        **image_options: `image_shape` (height and width `None` or at least 25),
            `input_tensor`, `include_preprocessing`, `pooling`, `data_format` and
            `dtype` as in `keras_dualstream.models.image_input.ImageOptions`.

    Attributes:
        pyramid_outputs: dict of KerasTensors `"P2"` … `"P5"`, the normalised
            maps of the stages.
        semantic_outputs: dict of KerasTensors `"S2"` … `"S5"`, the semantic
            tokens after each stage, `(batch, tokens, channels)`: the first
            three normalised, the last as it leaves its block.

    Example:

    >>> backbone = DualViTBackbone(
    ...     embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), depths=(1, 1, 1, 1), image_shape=(64, 96, 3))
    >>> {level: x.shape[1:] for level, x in backbone.pyramid_outputs.items()}
    {'P2': (16, 24, 8), 'P3': (8, 12, 16), 'P4': (4, 6, 24), 'P5': (2, 3, 32)}

    Reference:
        Yao et al., "Dual Vision Transformer" (2023), https://arxiv.org/abs/2207.04976
    """

    variants = VARIANTS
    head_options = ("token_label_head",)

    def __init__(
        self,
        stem_dim=32,
        embed_dims=(64, 128, 320, 448),
        num_heads=(2, 4, 10, 14),
        depths=(3, 4, 6, 3),
        mlp_ratios=(8, 8, 4, 3),
        drop_path_rate=0.0,
        layer_scale_init_value=1e-6,
        semantic_steps=SEMANTIC_STEPS,
        remat=False,
        name=None,
        **image_options,
    ):
        stages = check_per_stage(embed_dims=embed_dims, num_heads=num_heads, depths=depths, mlp_ratios=mlp_ratios)
        if mlp_ratios[2] <= 1:
            raise ValueError(f"`mlp_ratios` must be positive, the third above 1. Received: {mlp_ratios}")
        options = ImageOptions(**image_options)
        images, x = options.begin(MINIMUM_SIZE)

        layer_options = dict(dtype=options.dtype)
        dual_block = functools.partial(DualBlock, semantic_steps=semantic_steps)
        blocks = (dual_block, dual_block, MergeBlock, MergeBlock)
        rates = drop_path_rates(drop_path_rate, depths)
        pyramid, semantics = {}, {}
        x, z = _stem(x, stem_dim, **layer_options), None
        for i in range(4):
            stage, level = f"stage{i + 1}", i + 2
            x = PatchEmbedding(embed_dims[i], name=f"{stage}_embedding", **layer_options)(x)
            z = _semantic_embedding(x, z, stage, **layer_options)
            for j in range(depths[i]):
                block = blocks[i](
                    num_heads[i],
                    mlp_ratios[i] - (i == 2 and j % 2),
                    rates[i][j],
                    layer_scale_init_value,
                    remat=remat,
                    name=f"{stage}_block{j + 1}",
                    **layer_options,
                )
                x, z = block(x, z)
            normed = _norm(f"{stage}_norm", **layer_options)(x)
            pyramid[f"P{level}"], semantics[f"S{level}"] = normed, z
            if i < 3:
                x, z = normed, _norm(f"{stage}_semantic_norm", **layer_options)(z)
                semantics[f"S{level}"] = z

        config = dict(
            stem_dim=stem_dim,
            **stages,
            drop_path_rate=drop_path_rate,
            layer_scale_init_value=layer_scale_init_value,
            semantic_steps=tuple(semantic_steps),
            remat=remat,
        )
        super().__init__(images, pyramid, options, config, name)
        self._semantic_outputs = semantics
        self.num_heads = config["num_heads"]
        self.depths = config["depths"]
        self.semantic_steps = config["semantic_steps"]
        self.last_block_output = x

    @property
    def semantic_outputs(self):
        """The KerasTensors of the semantic tokens after each stage, `"S2"` … `"S5"`."""
        return dict(self._semantic_outputs)

    def classification_head(self, num_classes, token_label_head=True):
        """The layers from the last block to the logits.

        The class block condenses the last map and the semantic tokens into a
        class token, and a linear layer reads it. The token-label head reads the
        normalised pixels by another one and adds half of its maximum over the
        pixels.

        Args:
            num_classes: int.
            token_label_head: bool. Whether the pixels are classified too, as by
                the published weights. Defaults to `True`.

        Returns:
            The logits, and a dict of the outputs that training can use:
            `"logits"` of the class token and, with the token-label head,
            `"token_logits"` `(batch, height, width, num_classes)`.
        """
        layer_options = dict(dtype=self.dtype_policy)
        z = self.semantic_outputs["S5"]
        token = ClassBlock(self.num_heads[-1], name="class_block", **layer_options)(self.last_block_output, z)
        token = self.get_layer("stage4_norm")(token)
        logits = linear(num_classes, "classifier", **layer_options)(token)
        if not token_label_head:
            return logits, {"logits": logits}
        token_logits = linear(num_classes, "token_classifier", **layer_options)(self.features)
        strongest = keras.layers.GlobalMaxPooling2D(
            data_format="channels_last", name="token_classifier_max", **layer_options
        )(token_logits)
        half = keras.layers.Rescaling(0.5, name="token_classifier_weight", **layer_options)(strongest)
        summed = keras.layers.Add(name="logits", **layer_options)([logits, half])
        return summed, {"logits": logits, "token_logits": token_logits}


def _stem(x, channels, dtype):
    """Three convolutions, the first of stride 2, padded as PyTorch does."""
    for index, (kernel_size, strides) in enumerate(((7, 2), (3, 1), (3, 1)), 1):
        x = Conv2D(
            channels,
            kernel_size,
            strides=strides,
            zeros=kernel_size // 2,
            use_bias=False,
            kernel_initializer=conv_initializer(),
            dtype=dtype,
            name=f"stem_conv{index}",
        )(x)
        x = batch_normalization(f"stem_norm{index}", dtype)(x)
        x = keras.layers.ReLU(dtype=dtype, name=f"stem_relu{index}")(x)
    return x


def _semantic_embedding(x, z, stage, dtype):
    """Semantic tokens of a stage: made from the map at first, then projected to its channels."""
    if z is None:
        return SemanticTokens(name=f"{stage}_semantic_tokens", dtype=dtype)(x)
    z = linear(x.shape[-1], f"{stage}_semantic_embedding", dtype)(z)
    return _norm(f"{stage}_semantic_embedding_norm", dtype, epsilon=1e-5)(z)


def _norm(name, dtype, epsilon=1e-6):
    return LayerNormalization(epsilon=epsilon, dtype=dtype, name=name)


DualViTS, DualViTB, DualViTL = (make_builder(name, DualViTBackbone, options) for name, options in VARIANTS.items())
