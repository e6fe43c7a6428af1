"""Depthwise convolutions whose kernel depends on the sample as a whole."""

import keras
from keras import ops

from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.initializers import linear_initializer
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.layers.pytorch_defaults import batch_normalization
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.ops.depthwise import dynamic_depthwise_conv2d
from keras_dualstream.ops.float64 import mean
from keras_dualstream.ops.reshape import reshape


class _DynamicConv(NestedCall, keras.layers.Layer):
    """A depthwise convolution with a kernel made from the average of the sample."""

    def __init__(self, kernel_size=7, reduction_ratio=4, **kwargs):
        super().__init__(**kwargs)
        if kernel_size < 1 or kernel_size % 2 == 0 or reduction_ratio < 1:
            raise ValueError(
                "`kernel_size` must be odd and positive, `reduction_ratio` at least 1. Received: "
                f"kernel_size={kernel_size}, reduction_ratio={reduction_ratio}"
            )
        self.kernel_size = kernel_size
        self.reduction_ratio = reduction_ratio

    def _build_predictor(self, channels, outputs):
        """Two linear layers from the sample's average to `outputs` numbers."""
        hidden = max(channels // self.reduction_ratio, 1)
        self.squeeze = linear(hidden, "squeeze", self.dtype_policy, use_bias=False)
        self.norm = batch_normalization("norm", self.dtype_policy)
        self.expand = linear(outputs, "expand", self.dtype_policy)
        for layer, width in ((self.squeeze, channels), (self.norm, hidden), (self.expand, hidden)):
            layer.build((None, width))

    def _predict(self, x, training):
        hidden = self.norm(self.squeeze(mean(x, axis=(1, 2))), training=training)
        return self.expand(ops.relu(hidden))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "reduction_ratio": self.reduction_ratio,
        }


@keras.saving.register_keras_serializable(package="keras_dualstream")
class DyConv(_DynamicConv):
    """Depthwise dynamic convolution: each sample mixes learned kernels by one weight each.

    `y = DepthwiseConv(x, Σ_g π_g P_g)` with `π = softmax(Linear(ReLU(BN(Linear(average of x)))))`.

    Args:
        kernel_size: int, odd. Defaults to `7`.
        reduction_ratio: int. Channels over hidden channels. Defaults to `4`.
        num_groups: int. Number of learned kernels. Defaults to `4`.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`.
        training: bool. Whether batch normalisation uses the batch's statistics.

    Returns:
        Tensor of the shape of `x`.

    Raises:
        ValueError: if `kernel_size` is even or an argument is below 1.

    Example:

    >>> y = DyConv(kernel_size=3)(keras.ops.ones((2, 7, 9, 8)))
    >>> tuple(y.shape)
    (2, 7, 9, 8)

    Reference:
        Chen et al., "Dynamic Convolution: Attention over Convolution Kernels", eq. 1-2 (2020).
    """

    def __init__(self, kernel_size=7, reduction_ratio=4, num_groups=4, **kwargs):
        super().__init__(kernel_size, reduction_ratio, **kwargs)
        if num_groups < 1:
            raise ValueError(f"`num_groups` must be at least 1. Received: num_groups={num_groups}")
        self.num_groups = num_groups

    def build(self, input_shape):
        channels = input_shape[-1]
        self.kernels = self.add_weight(
            name="kernels",
            shape=(self.num_groups, self.kernel_size, self.kernel_size, channels),
            initializer=linear_initializer(),
        )
        self._build_predictor(channels, self.num_groups)
        keep_frozen(self)

    def call(self, x, training=None):
        weights = ops.softmax(self._predict(x, training), axis=-1)
        kernel = ops.einsum("bg,gk->bk", weights, reshape(self.kernels, (self.num_groups, -1)))
        shape = (-1, self.kernel_size, self.kernel_size, x.shape[-1])
        return dynamic_depthwise_conv2d(x, reshape(kernel, shape))

    def get_config(self):
        return {**super().get_config(), "num_groups": self.num_groups}


@keras.saving.register_keras_serializable(package="keras_dualstream")
class DDWConv(_DynamicConv):
    """Dynamic depthwise convolution: each sample's kernel is predicted from its average.

    `y = DepthwiseConv(x, Linear(ReLU(BN(Linear(average of x)))))`.

    Args:
        kernel_size: int, odd. Defaults to `7`.
        reduction_ratio: int. Channels over hidden channels. Defaults to `4`.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`.
        training: bool. Whether batch normalisation uses the batch's statistics.

    Returns:
        Tensor of the shape of `x`.

    Raises:
        ValueError: if `kernel_size` is even or an argument is below 1.

    Example:

    >>> y = DDWConv(kernel_size=3)(keras.ops.ones((2, 7, 9, 8)))
    >>> tuple(y.shape)
    (2, 7, 9, 8)

    Reference:
        Han et al., "On the Connection between Local Attention and Dynamic Depth-wise Convolution", eq. 9 (2022).
    """

    def build(self, input_shape):
        channels = input_shape[-1]
        self._build_predictor(channels, self.kernel_size**2 * channels)
        keep_frozen(self)

    def call(self, x, training=None):
        kernel = self._predict(x, training)
        shape = (-1, self.kernel_size, self.kernel_size, x.shape[-1])
        return dynamic_depthwise_conv2d(x, reshape(kernel, shape))
