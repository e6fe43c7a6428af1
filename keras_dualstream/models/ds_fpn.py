"""DS-FPN: a feature pyramid network whose connections are DS-Blocks."""

import copy
import dataclasses
import math
import numbers

import keras

from keras_dualstream.layers.convolution import Conv2D
from keras_dualstream.layers.ds_block import DSBlock
from keras_dualstream.layers.float64 import Dense
from keras_dualstream.layers.initializers import GlorotUniform
from keras_dualstream.layers.initializers import linear_initializer
from keras_dualstream.layers.patch_embedding import PatchEmbedding
from keras_dualstream.layers.top_down_addition import TopDownAddition
from keras_dualstream.models.flat_model import FlatModel
from keras_dualstream.models.pyramid_input import as_model
from keras_dualstream.models.pyramid_input import layout_of
from keras_dualstream.models.pyramid_input import maps_of
from keras_dualstream.models.pyramid_input import restorable

POSITIONS = (None, "last", "lateral", "lateral_rev", "lateral_extra")

# The global stream of a DS-Block is at least this many times smaller than the images.
GLOBAL_STRIDE = 32

# The attention's channels per head, in DS-Net as in DS-FPN.
HEAD_WIDTH = 32


@keras.saving.register_keras_serializable(package="keras_dualstream")
class DSFPN(FlatModel):
    """DS-FPN: a feature pyramid network with DS-Blocks, from a backbone's P3 … P5 to P3 … P7.

    With `C₃ … C₅` the backbone's maps, the network without DS-Blocks computes

    - laterals `Lₙ = Conv1×1(Cₙ)`;
    - top-down `M₅ = L₅`, `Mₙ = Lₙ + resize(Mₙ₊₁)`, by nearest neighbour to the
      very size of `Lₙ`;
    - outputs `Pₙ = Conv3×3(Mₙ)`, and `P₆ = Conv3×3(C₅)`, `P₇ = Conv3×3(P₆)` with
      stride 2.

    `position` puts DS-Blocks with inter-scale alignment into it. A block at
    stride `s` has its global stream on a grid `max(1, 32 / s)` times smaller,
    and heads of 32 channels, or of the next width above that divides its streams.

    Args:
        backbone: model with the attribute `pyramid_outputs`, a dict of
            KerasTensors of which `"P3"`, `"P4"` and `"P5"` are used, such as a
            backbone of this package or of KerasHub; or a functional model whose
            output is such a dict; or the dict itself.
        position: where the DS-Blocks are, as in the paper's Table 6. `None`:
            nowhere, the plain network. `"last"`: in place of the output
            convolutions of P3 … P5. `"lateral"`: before the lateral
            convolutions. `"lateral_rev"`: after them. `"lateral_extra"`: before
            them, and in P6 and P7, which are cut into patches of 2×2 instead:
            `P₆ = DSBlock(Conv2×2(C₅))`, `P₇ = DSBlock(Conv2×2(P₆))`. Defaults to
            `"lateral_extra"`.
        channels: int. Channels of the outputs. Defaults to `256`.
        mlp_ratio: float. Ratio of the DS-Blocks' feed-forward networks. Defaults to `4.0`.
        drop_path_rate: float. Rate of every DS-Block's stochastic depth. Defaults to `0.0`.
        attention_dropout_rate: float. Rate at which training drops the
            DS-Blocks' attention weights. Defaults to `0.1`.
        data_format: `"channels_last"` or `"channels_first"`, of the backbone's
            maps and of the outputs. Defaults to the backbone's attribute
            `data_format`, or else to `keras.config.image_data_format()`.
        dtype: dtype or dtype policy of the layers added to the backbone.
            Defaults to the backbone's, or the global policy for a dict.
        name: str. Name of the model. Defaults to `None`.

    Returns:
        A functional model from the backbone's inputs to a dict of `"P3"` …
        `"P7"`. It shares the backbone's layers; its own are called `"fpn_…"`.

    Attributes:
        pyramid_outputs: dict of the KerasTensors `"P3"` … `"P7"`.
        backbone: the model whose pyramid it is.
        image_shape: tuple. Shape of one image.
        min_level: int. 3, the finest level.
        max_level: int. 7, the coarsest level.

    Raises:
        ValueError: if an argument has none of the values above, or P5 is known
            to be too small for two halvings without padding (4×4) with
            `"lateral_extra"`.

    Example:

    >>> backbone = keras_dualstream.DSNetBackbone(
    ...     embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), depths=(1, 1, 1, 1), image_shape=(128, 192, 3))
    >>> pyramid = DSFPN(backbone, channels=16)
    >>> {level: x.shape[1:] for level, x in pyramid.pyramid_outputs.items()}
    {'P3': (16, 24, 16), 'P4': (8, 12, 16), 'P5': (4, 6, 16), 'P6': (2, 3, 16), 'P7': (1, 1, 16)}

    Reference:
        Mao et al., "Dual-stream Network for Visual Recognition", section 3.3
        and Table 6 (2021), https://arxiv.org/abs/2105.14734
    """

    def __init__(
        self,
        backbone,
        position="lateral_extra",
        channels=256,
        mlp_ratio=4.0,
        drop_path_rate=0.0,
        attention_dropout_rate=0.1,
        data_format=None,
        dtype=None,
        name=None,
    ):
        _check_options(position, channels, drop_path_rate=drop_path_rate, attention_dropout_rate=attention_dropout_rate)
        backbone = as_model(backbone)
        data_format = layout_of(backbone, data_format)
        maps = maps_of(backbone, data_format)
        policy = keras.dtype_policies.get(backbone.dtype_policy if dtype is None else dtype)
        block_options = dict(
            mlp_ratio=mlp_ratio, drop_path_rate=drop_path_rate, attention_dropout_rate=attention_dropout_rate
        )
        parts = _Parts(position, int(channels), data_format, policy, block_options)
        pyramid = _pyramid(maps, parts)
        super().__init__(inputs=backbone.input, outputs=pyramid, name=name)
        # Past Keras' attribute tracking: the backbone's layers are in this graph already.
        object.__setattr__(self, "backbone", backbone)
        self.dtype_policy = policy
        self.image_shape = tuple(self.inputs[0].shape[1:])
        self.min_level, self.max_level = 3, 7
        self.data_format = data_format
        self._pyramid_outputs = pyramid
        self._config = dict(position=position, channels=int(channels), data_format=data_format, **block_options)

    @property
    def pyramid_outputs(self):
        """The KerasTensors of the feature pyramid, `"P3"` … `"P7"`."""
        return dict(self._pyramid_outputs)

    def get_config(self):
        return {
            **super().get_config(),
            **self._config,
            "backbone": keras.saving.serialize_keras_object(restorable(self.backbone)),
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        restored = {
            # A copy: Keras takes a functional model's config apart while reading it.
            key: keras.saving.deserialize_keras_object(copy.deepcopy(config[key]), custom_objects=custom_objects)
            for key in ("backbone", "dtype")
        }
        return super().from_config({**config, **restored}, custom_objects)


def _pyramid(maps, parts):
    """The outputs P3 … P7 from the backbone's maps P3 … P5."""
    maps = {level: parts.channels_last(x, level) for level, x in maps.items()}
    parts.check_size(maps[5])
    merged = {level: parts.lateral(x, level) for level, x in maps.items()}
    for level in (4, 3):
        merged[level] = parts.top_down(merged[level], merged[level + 1], level)
    outputs = {level: parts.output(merged[level], level) for level in (3, 4, 5)}
    outputs[6] = parts.coarser(maps[5], 6)
    outputs[7] = parts.coarser(outputs[6], 7)
    return {f"P{level}": parts.laid_out(x, level) for level, x in outputs.items()}


@dataclasses.dataclass
class _Parts:
    """The steps of the pyramid, each with the layers that `position` asks for."""

    position: str
    channels: int
    data_format: str
    dtype: object
    block_options: dict

    def lateral(self, x, level):
        """A map of the backbone with the channels of the pyramid."""
        if self.position in ("lateral", "lateral_extra"):
            x = self.ds_block(x, level)
        x = Dense(self.channels, kernel_initializer=GlorotUniform(), name=f"fpn_P{level}_lateral", dtype=self.dtype)(x)
        return self.ds_block(x, level) if self.position == "lateral_rev" else x

    def top_down(self, fine, coarse, level):
        """What comes from the coarser level added to this one."""
        return TopDownAddition(name=f"fpn_P{level}_top_down", dtype=self.dtype)(fine, coarse)

    def output(self, x, level):
        """The last layer of P3 … P5."""
        if self.position == "last":
            return self.ds_block(x, level)
        return Conv2D(
            self.channels,
            3,
            zeros=1,
            kernel_initializer=GlorotUniform(),
            name=f"fpn_P{level}_output",
            dtype=self.dtype,
        )(x)

    def coarser(self, x, level):
        """P6 or P7, of half the size of `x`."""
        options = dict(normalization=None, name=f"fpn_P{level}_embedding", dtype=self.dtype)
        if self.position != "lateral_extra":
            return PatchEmbedding(self.channels, 3, 2, kernel_initializer=GlorotUniform(), **options)(x)
        embedding = PatchEmbedding(self.channels, 2, 2, padding=0, kernel_initializer=linear_initializer(), **options)
        return self.ds_block(embedding(x), level)

    def ds_block(self, x, level):
        """The only DS-Block of a level."""
        return DSBlock(
            num_heads=_num_heads(x.shape[-1]),
            global_stride=max(1, GLOBAL_STRIDE // 2**level),
            name=f"fpn_P{level}_block",
            dtype=self.dtype,
            **self.block_options,
        )(x)

    def check_size(self, x):
        """Raises a `ValueError` if P6 and P7 cannot be cut into patches."""
        if self.position == "lateral_extra" and any(size is not None and size < 4 for size in x.shape[1:3]):
            raise ValueError(
                "With `position='lateral_extra'` P5 must be at least 4x4 (images at least 128x128), as P6 and P7 are "
                f"halved without padding. Received: P5 of {x.shape[1]}x{x.shape[2]}"
            )

    def channels_last(self, x, level):
        """A map of the backbone as `(batch, height, width, channels)`."""
        if self.data_format == "channels_last":
            return x
        return keras.layers.Permute((2, 3, 1), dtype=self.dtype, name=f"fpn_P{level}_channels_last")(x)

    def laid_out(self, x, level):
        """An output in the layout of the backbone's maps."""
        if self.data_format == "channels_last":
            return x
        return keras.layers.Permute((3, 1, 2), dtype=self.dtype, name=f"fpn_P{level}_channels_first")(x)


def _num_heads(channels):
    """As many heads as divide both streams of a DS-Block without being narrower than `HEAD_WIDTH`, or one."""
    local_channels = channels // 2
    global_channels = channels - local_channels
    common = math.gcd(local_channels, global_channels)
    most = max(1, global_channels // HEAD_WIDTH)
    return max(heads for heads in range(1, most + 1) if common % heads == 0)


def _check_options(position, channels, **rates):
    if position not in POSITIONS:
        raise ValueError(f"`position` must be one of {POSITIONS}. Received: position={position!r}")
    if not isinstance(channels, numbers.Integral) or isinstance(channels, bool) or channels < 2:
        raise ValueError(f"`channels` must be an int of at least 2. Received: channels={channels!r}")
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"`{name}` must be in [0, 1). Received: {name}={rate}")
