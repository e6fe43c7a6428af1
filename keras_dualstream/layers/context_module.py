"""DFvT's fused downsampling, the head of its context module."""

import keras

from keras_dualstream.layers.block import Block
from keras_dualstream.layers.folding import normalized
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.pytorch_defaults import batch_normalization
from keras_dualstream.layers.pytorch_defaults import depthwise
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.ops.activation import silu
from keras_dualstream.ops.max_pool import max_pool3x3

BRANCHES = ("max_pool", "convolution")


def check_branches(**argument):
    """The branches in order, or a `ValueError` that names the argument."""
    (name, branches), *_ = argument.items()
    known = isinstance(branches, (tuple, list)) and branches and set(branches) <= set(BRANCHES)
    if not known:
        raise ValueError(f"`{name}` must be a tuple of one or both of {BRANCHES}. Received: {name}={branches!r}")
    return tuple(branch for branch in BRANCHES if branch in branches)


@keras.saving.register_keras_serializable(package="keras_dualstream")
class ContextModule(Block, keras.layers.Layer):
    """Fused downsampling before self-attention: the strongest responses plus a convolution's.

    - `s = f(DW3×3(f(DW3×3(f(Linear(x))))))`, `c = f(Linear(f(DW3×3(s))))` where `f`
      is batch normalisation and SiLU and the last `DW3×3` has the stride;
    - `t = maxpool3×3(x) + c`; without a stride `t = x + c`.

    No linear layer or convolution has a bias.

    Args:
        strides: int. Stride of the downsampling. Defaults to `2`.
        branches: tuple of one or both of `"max_pool"` and `"convolution"`, the
            terms of `t`. Without the convolution there is no `c`, and `s` is
            `x`. Defaults to both.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`.
        training: bool. Whether batch normalisation uses the batch's statistics.

    Returns:
        The context `t`, `(batch, ⌈height / strides⌉, ⌈width / strides⌉, channels)`,
        and the details `s` of the shape of `x`.

    Raises:
        ValueError: if an argument has none of the values above.

    Example:

    >>> context, details = ContextModule()(keras.ops.ones((2, 7, 10, 8)))
    >>> tuple(context.shape), tuple(details.shape)
    ((2, 4, 5, 8), (2, 7, 10, 8))

    Reference:
        Gao et al., "Doubly-Fused ViT", section 3.2 (2022), https://doi.org/10.1007/978-3-031-20050-2_43
    """

    def __init__(self, strides=2, branches=BRANCHES, **kwargs):
        super().__init__(**kwargs)
        if strides < 1:
            raise ValueError(f"`strides` must be at least 1. Received: strides={strides}")
        self.strides = strides
        self.branches = check_branches(branches=branches)

    def build(self, input_shape):
        channels, policy = input_shape[-1], self.dtype_policy
        self.convolutions, self.norms = [], []
        if "convolution" in self.branches:
            self.convolutions = [
                linear(channels, "convolution1", policy, use_bias=False),
                depthwise(3, "convolution2", policy, padding=1, use_bias=False),
                depthwise(3, "convolution3", policy, padding=1, use_bias=False),
                depthwise(3, "convolution4", policy, padding=1, strides=self.strides, use_bias=False),
                linear(channels, "convolution5", policy, use_bias=False),
            ]
            self.norms = [batch_normalization(f"norm{i}", policy) for i in range(1, 6)]
        for layer in (*self.convolutions, *self.norms):
            layer.build((None, None, None, channels))
        keep_frozen(self)

    def call(self, x, training=None):
        pooled = self._max_pool(x) if "max_pool" in self.branches else None
        if not self.convolutions:
            return pooled, x
        details = self._convolve(x, slice(0, 3), training)
        context = self._convolve(details, slice(3, 5), training)
        return context if pooled is None else pooled + context, details

    def _convolve(self, x, steps, training):
        for convolution, norm in zip(self.convolutions[steps], self.norms[steps], strict=True):
            x = silu(normalized(norm, convolution, x, training))
        return x

    def _max_pool(self, x):
        if self.strides == 1:
            return x
        return max_pool3x3(x, self.strides)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        height, width = (None if size is None else -(-size // self.strides) for size in (height, width))
        return (batch, height, width, channels), tuple(input_shape)

    def get_config(self):
        return {**super().get_config(), "strides": self.strides, "branches": self.branches}
