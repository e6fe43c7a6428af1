"""TransXNet: input-dependent convolution and global attention side by side."""

import keras

from keras_dualstream.layers.drop_path import drop_path_rates
from keras_dualstream.layers.group_normalization import GroupNormalization
from keras_dualstream.layers.initializers import linear_initializer
from keras_dualstream.layers.osra import PositionBias
from keras_dualstream.layers.patch_embedding import PatchEmbedding
from keras_dualstream.layers.transxnet_block import TransXNetBlock
from keras_dualstream.models.backbone import Backbone
from keras_dualstream.models.backbone import check_per_stage
from keras_dualstream.models.classifier import make_builder
from keras_dualstream.models.image_input import ImageOptions

VARIANTS = {
    "TransXNetT": dict(
        embed_dims=(48, 96, 224, 448),
        num_heads=(1, 2, 4, 8),
        depths=(3, 3, 9, 3),
        mlp_ratios=(4, 4, 4, 4),
        num_groups=(2, 2, 2, 2),
        drop_path_rate=0.1,
    ),
    "TransXNetS": dict(
        embed_dims=(64, 128, 320, 512),
        num_heads=(1, 2, 5, 8),
        depths=(4, 4, 12, 4),
        mlp_ratios=(6, 6, 4, 4),
        num_groups=(2, 2, 3, 4),
        drop_path_rate=0.2,
    ),
    "TransXNetB": dict(
        embed_dims=(76, 152, 336, 672),
        num_heads=(2, 4, 8, 16),
        depths=(4, 4, 21, 4),
        mlp_ratios=(8, 8, 4, 4),
        num_groups=(2, 2, 4, 4),
        drop_path_rate=0.4,
    ),
}

# The stem of kernel 7 is padded by 3 on each side, so that one pixel suffices.
MINIMUM_SIZE = 1


@keras.saving.register_keras_serializable(package="keras_dualstream")
class TransXNetBackbone(Backbone):
    """TransXNet without its head.

    Four stages of `TransXNetBlock`s at strides 4, 8, 16 and 32: in every block
    an input-dependent convolution (IDConv) sees half of the channels, attention
    over a reduced map (OSRA) the other half.

    Args:
        embed_dims: tuple of four int. Channels per stage. Defaults to `(48, 96, 224, 448)`.
        num_heads: tuple of four int. Attention heads per stage. Defaults to `(1, 2, 4, 8)`.
        depths: tuple of four int. Blocks per stage. Defaults to `(3, 3, 9, 3)`.
        mlp_ratios: tuple of four float. Ratio of the feed-forward networks per
            stage. Defaults to `(4, 4, 4, 4)`.
        num_groups: tuple of four int. Kernels that IDConv mixes per stage. Defaults to `(2, 2, 2, 2)`.
        sr_ratios: tuple of four int. Reduction of the attention's keys per
            stage. Defaults to `(8, 4, 2, 1)`.
        kernel_size: int, odd. Kernel of the local operator. Defaults to `7`.
        scales: tuple of odd int. Kernel sizes of the feed-forward networks. Defaults to `(1, 3, 5, 7)`.
        attention_ratio: float. Share of the channels that attention receives. Defaults to `0.5`.
        local_operator: str. See `DMixer`. Defaults to `"id_conv"`.
        overlapping_reduction: bool. Whether OSRA's reduction overlaps. Defaults to `True`.
        token_enhancer: bool. Whether the squeezed token enhancer fuses; otherwise
            a 1×1 convolution. Defaults to `True`.
        position_encoding: bool. Whether blocks start with a dynamic position encoding. Defaults to `True`.
        position_bias: bool. Whether every stage has a learned bias per head,
            query and key. Defaults to `True`.
        pretraining_size: int or pair of int. Height and width of the images that
            the position bias is made for; for other images it is resized
            (bicubic) on the way. Defaults to `224`.
        drop_path_rate: float. Stochastic depth, rising linearly from 0 at the
            first block to this rate at the last. Defaults to `0.0`.
        layer_scale_init_value: float. Starting value of every γ. Defaults to `1e-5`.
        name: str. Name of the model. Defaults to `None`.
        **image_options: `image_shape`, `input_tensor`, `include_preprocessing`,
            `pooling`, `data_format` and `dtype` as in
            `keras_dualstream.models.image_input.ImageOptions`.

    Attributes:
        pyramid_outputs: dict of KerasTensors `"P2"` … `"P5"`, the maps as they
            leave the stages, not normalised.

    Example:

    >>> backbone = TransXNetBackbone(
    ...     embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), pretraining_size=64, image_shape=(64, 96, 3))
    >>> {level: x.shape[1:] for level, x in backbone.pyramid_outputs.items()}
    {'P2': (16, 24, 8), 'P3': (8, 12, 16), 'P4': (4, 6, 24), 'P5': (2, 3, 32)}

    Reference:
        Lou et al., "TransXNet" (2025), https://arxiv.org/abs/2310.19380
    """

    variants = VARIANTS

    def __init__(
        self,
        embed_dims=(48, 96, 224, 448),
        num_heads=(1, 2, 4, 8),
        depths=(3, 3, 9, 3),
        mlp_ratios=(4, 4, 4, 4),
        num_groups=(2, 2, 2, 2),
        sr_ratios=(8, 4, 2, 1),
        kernel_size=7,
        scales=(1, 3, 5, 7),
        attention_ratio=0.5,
        local_operator="id_conv",
        overlapping_reduction=True,
        token_enhancer=True,
        position_encoding=True,
        position_bias=True,
        pretraining_size=224,
        drop_path_rate=0.0,
        layer_scale_init_value=1e-5,
        name=None,
        **image_options,
    ):
        stages = check_per_stage(
            embed_dims=embed_dims,
            num_heads=num_heads,
            depths=depths,
            mlp_ratios=mlp_ratios,
            num_groups=num_groups,
            sr_ratios=sr_ratios,
        )
        mixer_options = dict(
            kernel_size=kernel_size,
            attention_ratio=attention_ratio,
            local_operator=local_operator,
            overlapping_reduction=overlapping_reduction,
            token_enhancer=token_enhancer,
        )
        block_options = dict(
            scales=tuple(scales), layer_scale_init_value=layer_scale_init_value, position_encoding=position_encoding
        )
        pretraining_size = _size_pair(pretraining_size)
        rates = drop_path_rates(drop_path_rate, depths)
        options = ImageOptions(**image_options)
        images, x = options.begin(MINIMUM_SIZE)
        pyramid = {}
        for i in range(4):
            x = _stage(
                x,
                i,
                {key: values[i] for key, values in stages.items()},
                rates[i],
                {**block_options, "mixer_options": {**mixer_options, "num_groups": num_groups[i]}},
                [-(-size // 2 ** (i + 2)) for size in pretraining_size] if position_bias else None,
                options.dtype,
            )
            pyramid[f"P{i + 2}"] = x
        config = dict(
            **stages,
            **mixer_options,
            **block_options,
            position_bias=position_bias,
            pretraining_size=pretraining_size,
            drop_path_rate=drop_path_rate,
        )
        super().__init__(images, pyramid, options, config, name)
        self.depths = stages["depths"]
        self.position_bias = position_bias

    def classification_head(self, num_classes):
        """See `averaged_head`."""
        return self.averaged_head(GroupNormalization(name="norm", dtype=self.dtype_policy), num_classes)


def _stage(x, index, options, drop_path_rates, block_options, bias_size, dtype):
    """Patch embedding and blocks of one stage."""
    stage = f"stage{index + 1}"
    kernel_size, strides = (7, 4) if index == 0 else (3, 2)
    x = PatchEmbedding(
        options["embed_dims"],
        kernel_size,
        strides,
        normalization="batch",
        kernel_initializer=linear_initializer(),
        name=f"{stage}_embedding",
        dtype=dtype,
    )(x)
    bias = ()
    if bias_size is not None:
        position_bias = PositionBias(
            options["num_heads"],
            *bias_size,
            sr_ratio=options["sr_ratios"],
            name=f"{stage}_position_bias",
            dtype=dtype,
        )
        bias = (position_bias(x),)
    for block, rate in enumerate(drop_path_rates, 1):
        x = TransXNetBlock(
            options["num_heads"],
            options["sr_ratios"],
            options["mlp_ratios"],
            drop_path_rate=rate,
            name=f"{stage}_block{block}",
            dtype=dtype,
            **block_options,
        )(x, *bias)
    return x


def _size_pair(pretraining_size):
    pair = pretraining_size if isinstance(pretraining_size, (tuple, list)) else (pretraining_size,) * 2
    if len(pair) != 2 or any(not isinstance(size, int) or size < 1 for size in pair):
        raise ValueError(
            "`pretraining_size` must be a positive int or a pair of them. "
            f"Received: pretraining_size={pretraining_size!r}"
        )
    return tuple(pair)


TransXNetT, TransXNetS, TransXNetB = (
    make_builder(name, TransXNetBackbone, options) for name, options in VARIANTS.items()
)
