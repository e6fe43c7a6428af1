"""DS-Net: convolution and self-attention at two scales, aligned with each other."""

import keras

from keras_dualstream.layers.drop_path import drop_path_rates
from keras_dualstream.layers.ds_block import DSBlock
from keras_dualstream.layers.initializers import linear_initializer
from keras_dualstream.layers.patch_embedding import PatchEmbedding
from keras_dualstream.layers.pytorch_defaults import batch_normalization
from keras_dualstream.models.backbone import Backbone
from keras_dualstream.models.backbone import check_per_stage
from keras_dualstream.models.classifier import make_builder
from keras_dualstream.models.image_input import ImageOptions

VARIANTS = {
    "DSNetT": dict(embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8), depths=(2, 2, 4, 1), drop_path_rate=0.1),
    "DSNetS": dict(embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8), depths=(3, 4, 8, 3), drop_path_rate=0.1),
    "DSNetB": dict(embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8), depths=(3, 4, 28, 3), drop_path_rate=0.1),
}

# Five halvings without padding leave one position of 32.
MINIMUM_SIZE = 32


@keras.saving.register_keras_serializable(package="keras_dualstream")
class DSNetBackbone(Backbone):
    """DS-Net without its head.

    Four stages of `DSBlock`s at strides 4, 8, 16 and 32: in every block a
    convolution sees half of the channels at full resolution, self-attention the
    other half on a coarse grid, and co-attention aligns them (the paper's
    DS-Net\\*). Images may be of any size from 32×32 up. Where a size is not
    divisible by 32, the patches leave out the last rows and columns, as
    PyTorch's convolutions do, and a level `Pn` has `⌊size / 2ⁿ⌋` positions.

    Args:
        embed_dims: tuple of four int. Channels per stage. Defaults to `(64, 128, 320, 512)`.
        num_heads: tuple of four int. Attention heads per stage. Defaults to `(1, 2, 5, 8)`.
        depths: tuple of four int. Blocks per stage. Defaults to `(2, 2, 4, 1)`.
        global_strides: tuple of four int. How many times smaller than the map
            the grid of the global stream is, per stage. Defaults to `(8, 4, 2, 2)`.
        mlp_ratio: float. Ratio of the feed-forward networks. Defaults to `4.0`.
        global_ratio: float in `[0, 1]`. Share of the channels in the global
            stream; 0 and 1 only without alignment. Defaults to `0.5`.
        inter_scale_alignment: bool. Whether the streams of a block attend to
            each other (DS-Net\\*). Defaults to `True`.
        alignment_dims: tuple of four int. Channels of the alignment's queries,
            keys and values per stage; `None` for those of the narrower stream.
            Defaults to `None`.
        local_convolution: bool. Whether the local stream has its convolution. Defaults to `True`.
        global_attention: bool. Whether the global stream has its attention. Defaults to `True`.
        local_to_global: bool. With alignment, whether the global stream reads
            from the local one. Defaults to `True`.
        global_to_local: bool. With alignment, whether the local stream reads
            from the global one; with neither there is no alignment. Defaults to `True`.
        attention_dropout_rate: float. Rate at which training drops attention
            weights. Defaults to `0.1`.
        drop_path_rate: float. Stochastic depth, rising linearly from 0 at the
            first block to this rate at the last. Defaults to `0.0`.
        name: str. Name of the model. Defaults to `None`.
        **image_options: `image_shape` (height and width `None` or at least 32),
            `input_tensor`, `include_preprocessing`, `pooling`, `data_format` and
            `dtype` as in `keras_dualstream.models.image_input.ImageOptions`.

    Attributes:
        pyramid_outputs: dict of KerasTensors `"P2"` … `"P5"`, the maps as they
            leave the stages, not normalised.

    Example:

    >>> backbone = DSNetBackbone(
    ...     embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), depths=(1, 1, 1, 1), image_shape=(64, 97, 3))
    >>> {level: x.shape[1:] for level, x in backbone.pyramid_outputs.items()}
    {'P2': (16, 24, 8), 'P3': (8, 12, 16), 'P4': (4, 6, 24), 'P5': (2, 3, 32)}

    Reference:
        Mao et al., "Dual-stream Network for Visual Recognition" (2021),
        https://arxiv.org/abs/2105.14734
    """

    variants = VARIANTS

    def __init__(
        self,
        embed_dims=(64, 128, 320, 512),
        num_heads=(1, 2, 5, 8),
        depths=(2, 2, 4, 1),
        global_strides=(8, 4, 2, 2),
        mlp_ratio=4.0,
        global_ratio=0.5,
        inter_scale_alignment=True,
        alignment_dims=None,
        local_convolution=True,
        global_attention=True,
        local_to_global=True,
        global_to_local=True,
        attention_dropout_rate=0.1,
        drop_path_rate=0.0,
        name=None,
        **image_options,
    ):
        stages = check_per_stage(
            embed_dims=embed_dims, num_heads=num_heads, depths=depths, global_strides=global_strides
        )
        if alignment_dims is not None:
            alignment_dims = check_per_stage(alignment_dims=alignment_dims)["alignment_dims"]
        block_options = dict(
            mlp_ratio=mlp_ratio,
            global_ratio=global_ratio,
            inter_scale_alignment=inter_scale_alignment,
            local_convolution=local_convolution,
            global_attention=global_attention,
            local_to_global=local_to_global,
            global_to_local=global_to_local,
            attention_dropout_rate=attention_dropout_rate,
        )
        rates = drop_path_rates(drop_path_rate, depths)
        options = ImageOptions(**image_options)
        images, x = options.begin(MINIMUM_SIZE)
        pyramid = {}
        for i in range(4):
            stage_options = dict(
                num_heads=num_heads[i],
                global_stride=global_strides[i],
                alignment_dim=None if alignment_dims is None else alignment_dims[i],
                dtype=options.dtype,
                **block_options,
            )
            x = _stage(x, i, embed_dims[i], rates[i], stage_options)
            pyramid[f"P{i + 2}"] = x
        config = dict(**stages, **block_options, alignment_dims=alignment_dims, drop_path_rate=drop_path_rate)
        super().__init__(images, pyramid, options, config, name)
        self.depths = stages["depths"]

    def classification_head(self, num_classes):
        """See `averaged_head`."""
        return self.averaged_head(batch_normalization("norm", self.dtype_policy), num_classes)


def _stage(x, index, channels, drop_path_rates, block_options):
    """Patch embedding and blocks of one stage."""
    stage = f"stage{index + 1}"
    patch_size = 4 if index == 0 else 2
    x = PatchEmbedding(
        channels,
        patch_size,
        patch_size,
        normalization=None,
        kernel_initializer=linear_initializer(),
        padding=0,
        name=f"{stage}_embedding",
        dtype=block_options["dtype"],
    )(x)
    for block, rate in enumerate(drop_path_rates, 1):
        x = DSBlock(drop_path_rate=rate, name=f"{stage}_block{block}", **block_options)(x)
    return x


DSNetT, DSNetS, DSNetB = (make_builder(name, DSNetBackbone, options) for name, options in VARIANTS.items())
