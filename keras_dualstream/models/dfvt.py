"""DFvT: attention of a downsampled context, details fused in by a second stream."""

import keras

from keras_dualstream.layers.context_module import BRANCHES
from keras_dualstream.layers.context_module import ContextModule
from keras_dualstream.layers.context_module import check_branches
from keras_dualstream.layers.dfvt_block import DFvTBlock
from keras_dualstream.layers.drop_path import drop_path_rates
from keras_dualstream.layers.float64 import LayerNormalization
from keras_dualstream.layers.patch_embedding import PatchEmbedding
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.layers.spatial_module import SpatialModule
from keras_dualstream.models.backbone import Backbone
from keras_dualstream.models.backbone import check_per_stage
from keras_dualstream.models.classifier import make_builder
from keras_dualstream.models.image_input import ImageOptions

VARIANTS = {
    "DFvTT": dict(embed_dim=48, depths=(1, 1, 2, 1), num_heads=(3, 6, 12, 24), mlp_ratio=4.0, drop_path_rate=0.0),
    "DFvTS": dict(embed_dim=96, depths=(1, 1, 2, 1), num_heads=(3, 6, 12, 24), mlp_ratio=2.0, drop_path_rate=0.1),
    "DFvTB": dict(embed_dim=128, depths=(2, 2, 6, 2), num_heads=(4, 8, 16, 32), mlp_ratio=2.0, drop_path_rate=0.2),
}

# Every convolution is padded by 1 on each side, so that one pixel suffices.
MINIMUM_SIZE = 1


@keras.saving.register_keras_serializable(package="keras_dualstream")
class DFvTBackbone(Backbone):
    """DFvT without its head.

    A stem of stride 4 and four stages, of which the first three halve the map
    before their attention (`ContextModule`) and fuse the details that this lost
    (`SpatialModule`) into every block (`DFvTBlock`).

    Args:
        embed_dim: int, at least 2. Channels of the stem and the first stage;
            every stage has twice as many as the one before. Defaults to `96`.
        depths: tuple of four int. Blocks per stage; every second one has
            shifted windows. Defaults to `(1, 1, 2, 1)`.
        num_heads: tuple of four int. Attention heads per stage. Defaults to `(3, 6, 12, 24)`.
        mlp_ratio: float. Ratio of the feed-forward networks. Defaults to `2.0`.
        window_size: int. Window of the attention. Defaults to `7`.
        fusion: str. How blocks fuse the spatial features, see `DFvTBlock`;
            `None`, with `spatial_module=False`, for not at all. Defaults to `"dane"`.
        context_branches: tuple of str. Terms of the downsampling before
            attention, see `ContextModule`. Defaults to `("max_pool", "convolution")`.
        spatial_module: bool. Whether the spatial features come from
            `SpatialModule`s; otherwise they are 2×2 averages. Defaults to `True`.
        drop_path_rate: float. Stochastic depth, rising linearly from 0 at the
            first block to this rate at the last. Defaults to `0.0`.
        name: str. Name of the model. Defaults to `None`.
        **image_options: `image_shape`, `input_tensor`, `include_preprocessing`,
            `pooling`, `data_format` and `dtype` as in
            `keras_dualstream.models.image_input.ImageOptions`.

    Attributes:
        pyramid_outputs: dict of KerasTensors: `"P2"` is the stem, `"P3"`,
            `"P4"` and `"P5"` are the first, second and fourth stage, not normalised.

    Example:

    >>> backbone = DFvTBackbone(embed_dim=32, num_heads=(1, 2, 4, 8), image_shape=(64, 96, 3))
    >>> {level: x.shape[1:] for level, x in backbone.pyramid_outputs.items()}
    {'P2': (16, 24, 32), 'P3': (8, 12, 32), 'P4': (4, 6, 64), 'P5': (2, 3, 256)}

    Reference:
        Gao et al., "Doubly-Fused ViT" (2022), https://doi.org/10.1007/978-3-031-20050-2_43
    """

    variants = VARIANTS

    def __init__(
        self,
        embed_dim=96,
        depths=(1, 1, 2, 1),
        num_heads=(3, 6, 12, 24),
        mlp_ratio=2.0,
        window_size=7,
        fusion="dane",
        context_branches=BRANCHES,
        spatial_module=True,
        drop_path_rate=0.0,
        name=None,
        **image_options,
    ):
        stages = check_per_stage(depths=depths, num_heads=num_heads)
        if embed_dim < 2:
            raise ValueError(f"`embed_dim` must be at least 2. Received: embed_dim={embed_dim}")
        if fusion is None and spatial_module:
            raise ValueError(
                "Without a fusion nothing reads the spatial module: `fusion=None` needs `spatial_module=False`. "
                f"Received: fusion={fusion}, spatial_module={spatial_module}"
            )
        context_branches = check_branches(context_branches=context_branches)
        block_options = dict(mlp_ratio=mlp_ratio, window_size=window_size, fusion=fusion)
        options = ImageOptions(**image_options)
        images, x = options.begin(MINIMUM_SIZE)
        x = _stem(x, embed_dim, options.dtype)
        pyramid = {"P2": x}
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            stage = f"stage{i + 1}"
            context, spatial = _modules(x, stage, i < 3, context_branches, spatial_module, fusion, options.dtype)
            for j, rate in enumerate(rates):
                context = DFvTBlock(
                    num_heads[i],
                    shift_size=window_size // 2 if j % 2 else 0,
                    drop_path_rate=rate,
                    name=f"{stage}_block{j + 1}",
                    dtype=options.dtype,
                    **block_options,
                )(context, *spatial)
            if i != 2:
                pyramid[f"P{min(i + 3, 5)}"] = context
            if i < 3:
                x = _norm(f"{stage}_norm", options.dtype)(context)
                x = linear(2 * x.shape[-1], f"{stage}_projection", options.dtype, use_bias=False)(x)
        config = dict(
            embed_dim=embed_dim,
            **stages,
            **block_options,
            context_branches=context_branches,
            spatial_module=spatial_module,
            drop_path_rate=drop_path_rate,
        )
        super().__init__(images, pyramid, options, config, name)
        self.depths = stages["depths"]

    def classification_head(self, num_classes):
        """See `averaged_head`."""
        return self.averaged_head(_norm("norm", self.dtype_policy), num_classes)


def _stem(x, embed_dim, dtype):
    """Two convolutions of stride 2."""
    for index, channels in enumerate((embed_dim // 2, embed_dim), 1):
        options = dict(normalization="batch", use_bias=True, activation="silu", dtype=dtype)
        x = PatchEmbedding(channels, name=f"stem_embedding{index}", **options)(x)
    return x


def _modules(x, stage, halves, context_branches, spatial_module, fusion, dtype):
    """The context of a stage and, in a tuple that is empty without a fusion, its spatial features."""
    strides = 2 if halves else 1
    context, details = ContextModule(strides, context_branches, name=f"{stage}_context", dtype=dtype)(x)
    if fusion is None:
        return context, ()
    if not halves:
        return context, (x,)
    if spatial_module:
        return context, (SpatialModule(name=f"{stage}_spatial", dtype=dtype)(details),)
    average = keras.layers.AveragePooling2D(
        2, padding="same", data_format="channels_last", name=f"{stage}_spatial_average", dtype=dtype
    )
    return context, (average(details),)


def _norm(name, dtype):
    return LayerNormalization(epsilon=1e-5, name=name, dtype=dtype)


DFvTT, DFvTS, DFvTB = (make_builder(name, DFvTBackbone, options) for name, options in VARIANTS.items())
