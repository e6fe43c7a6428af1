"""TransXNet's multi-scale feed-forward network."""

import functools

import keras

from keras_dualstream.layers.depthwise_conv import DepthwiseConv2D
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.layers.normalized_gelu import from_normalized_gelu
from keras_dualstream.layers.pytorch_defaults import batch_normalization
from keras_dualstream.layers.pytorch_defaults import depthwise
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.layers.recomputation import adds_losses
from keras_dualstream.ops.channels import parts_and_functions
from keras_dualstream.ops.compiler import watched_by_pytorch
from keras_dualstream.ops.depthwise import convolves_parts_at_once
from keras_dualstream.ops.depthwise import depthwise_conv2d_of_parts
from keras_dualstream.ops.pieces import in_pieces

# What a part's layer is built with, beside its weights.
AS_BUILT = {
    "strides": (1, 1),
    "padding": "same",
    "dilation_rate": (1, 1),
    "data_format": "channels_last",
    "depth_multiplier": 1,
    "use_bias": True,
    "residual": False,
    "activation": keras.activations.linear,
    "activity_regularizer": None,
}


@keras.saving.register_keras_serializable(package="keras_dualstream")
class MSFFN(NestedCall, keras.layers.Layer):
    """Multi-scale feed-forward network: hidden channels see neighbourhoods of several sizes.

    - `h = BN(GELU(Linear(x)))`, no bias;
    - `h = h + [DW_k(h_k)]`, the hidden channels in equal consecutive parts, one
      depthwise convolution of its own size each (the first part takes the rest);
    - `y = BN(Linear(BN(GELU(h))))`, no bias.

    Args:
        mlp_ratio: float. Hidden channels over channels. Defaults to `4.0`.
        scales: tuple of odd int. Kernel sizes, one a part. Defaults to `(1, 3, 5, 7)`.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`.
        training: bool. Whether batch normalisation uses the batch's statistics.

    Returns:
        Tensor of the shape of `x`.

    Raises:
        ValueError: if `scales` is empty or has an even size, or there are fewer
            hidden channels than scales.

    Example:

    >>> y = MSFFN(mlp_ratio=4)(keras.ops.ones((2, 7, 9, 16)))
    >>> tuple(y.shape)
    (2, 7, 9, 16)

    Reference:
        Lou et al., "TransXNet", section 3.4 (2025), https://arxiv.org/abs/2310.19380
    """

    def __init__(self, mlp_ratio=4.0, scales=(1, 3, 5, 7), **kwargs):
        super().__init__(**kwargs)
        if not scales or any(size < 1 or size % 2 == 0 for size in scales):
            raise ValueError(f"`scales` must be odd positive kernel sizes. Received: scales={scales}")
        self.mlp_ratio = mlp_ratio
        self.scales = tuple(scales)

    def build(self, input_shape):
        channels = input_shape[-1]
        hidden = int(channels * self.mlp_ratio)
        part, rest = divmod(hidden, len(self.scales))
        if part < 1:
            raise ValueError(
                f"`mlp_ratio` must give at least one hidden channel for each of the {len(self.scales)} scales. "
                f"Received: mlp_ratio={self.mlp_ratio}, channels={channels}"
            )
        self.part_channels = [part + rest] + [part] * (len(self.scales) - 1)
        policy = self.dtype_policy
        self.expand = linear(hidden, "expand", policy, use_bias=False)
        self.depthwise = [depthwise(size, f"depthwise{index}", policy) for index, size in enumerate(self.scales, 1)]
        self.reduce = linear(channels, "reduce", policy, use_bias=False)
        norms = (batch_normalization(f"norm{i}", policy) for i in (1, 2, 3))
        self.norm1, self.norm2, self.norm3 = norms
        for layer, width in ((self.expand, channels), (self.norm3, channels)):
            layer.build((None, None, None, width))
        for layer in (self.norm1, self.norm2, self.reduce):
            layer.build((None, None, None, hidden))
        for layer, width in zip(self.depthwise, self.part_channels, strict=True):
            layer.build((None, None, None, width))
        keep_frozen(self)

    def call(self, x, training=None):
        forward = functools.partial(self._forward, training=training)
        # The batch's statistics are of all samples at once. Without them TransXNet-S predicts in 734 instead of 861 ms
        # on JAX, and T in 315 instead of 358.
        if training or adds_losses(self):
            return forward(x)
        return in_pieces(forward, (*x.shape[:-1], self.expand.units), x)

    def _forward(self, x, training):
        h = from_normalized_gelu(self._with_neighbours, self.depthwise, self.norm1, self.expand(x), training)
        y = from_normalized_gelu(self.reduce, [self.reduce], self.norm2, h, training)
        return self.norm3(y, training=training, overwrite=True)

    def _with_neighbours(self, h):
        if convolves_parts_at_once(h) and all(map(_only_convolves, self.depthwise)):
            return depthwise_conv2d_of_parts(h, *zip(*((x.kernel, x.bias) for x in self.depthwise), strict=True))
        # A hook may keep what a convolution was given.
        overwrite = not any(watched_by_pytorch(layer) for layer in self.depthwise)
        return parts_and_functions(h, self.part_channels, self.depthwise, overwrite)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "mlp_ratio": self.mlp_ratio, "scales": self.scales}


def _only_convolves(layer):
    """Whether a part's layer, which a user may have changed, convolves as it was built to, and no more."""
    plain = type(layer) is DepthwiseConv2D and vars(layer).keys().isdisjoint(("call", "convolve"))
    return plain and all(getattr(layer, name) == value for name, value in AS_BUILT.items())
