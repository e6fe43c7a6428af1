"""TransXNet's input-dependent depthwise convolution."""

import keras
from keras import ops

from keras_dualstream.layers.folding import normalized
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.initializers import linear_initializer
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.layers.pytorch_defaults import batch_normalization
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.ops.activation import gelu
from keras_dualstream.ops.depthwise import dynamic_depthwise_conv2d
from keras_dualstream.ops.float64 import mean
from keras_dualstream.ops.resample import adaptive_average_pool
from keras_dualstream.ops.reshape import reshape
from keras_dualstream.ops.softmax import softmax


@keras.saving.register_keras_serializable(package="keras_dualstream")
class IDConv(NestedCall, keras.layers.Layer):
    """Input-dependent depthwise convolution: every sample has its own kernel.

    With `f(u) = Linear(GELU(BN(Linear(u))))` from C to C/4 to G·C channels, G
    learned kernels `P` and biases `b` are mixed per sample, channel and tap:

    - `A = softmax over G of f(adaptive average pool of x to K×K)`, `W = Σ_g A_g · P_g`;
    - `a = softmax over G of f(average of x)`, `β = Σ_g a_g · b_g`;
    - `y = DepthwiseConv(x, W) + β`, zero padded to the size of `x`.

    In training `f` updates its batch statistics twice, as the published code does.

    Args:
        kernel_size: int, odd. K. Defaults to `7`.
        num_groups: int. G. Defaults to `2`.
        reduction_ratio: int. Channels over hidden channels of `f`. Defaults to `4`.
        use_bias: bool. Whether β is added. Defaults to `True`.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`.
        training: bool. Whether batch normalisation uses the batch's statistics.

    Returns:
        Tensor of the shape of `x`.

    Raises:
        ValueError: if `kernel_size` is even or an argument is below 1.

    Example:

    >>> y = IDConv(kernel_size=7, num_groups=2)(keras.ops.ones((2, 14, 10, 24)))
    >>> tuple(y.shape)
    (2, 14, 10, 24)

    Reference:
        Lou et al., "TransXNet", eq. 1-3 (2025), https://arxiv.org/abs/2310.19380
    """

    def __init__(self, kernel_size=7, num_groups=2, reduction_ratio=4, use_bias=True, **kwargs):
        super().__init__(**kwargs)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd and positive. Received: kernel_size={kernel_size}")
        if min(num_groups, reduction_ratio) < 1:
            raise ValueError(
                "`num_groups` and `reduction_ratio` must be at least 1. "
                f"Received: num_groups={num_groups}, reduction_ratio={reduction_ratio}"
            )
        self.kernel_size = kernel_size
        self.num_groups = num_groups
        self.reduction_ratio = reduction_ratio
        self.use_bias = use_bias

    def build(self, input_shape):
        channels, size = input_shape[-1], self.kernel_size
        shapes = {"kernels": (self.num_groups, size, size, channels)}
        if self.use_bias:
            shapes["biases"] = (self.num_groups, channels)
        self.biases = None
        for name, shape in shapes.items():
            setattr(self, name, self.add_weight(name=name, shape=shape, initializer=linear_initializer()))
        hidden = max(channels // self.reduction_ratio, 1)
        self.squeeze = linear(hidden, "squeeze", self.dtype_policy, use_bias=False)
        self.norm = batch_normalization("norm", self.dtype_policy)
        self.expand = linear(self.num_groups * channels, "expand", self.dtype_policy)
        self.squeeze.build((None, None, None, channels))
        self.norm.build((None, None, None, hidden))
        self.expand.build((None, None, None, hidden))
        keep_frozen(self)

    def call(self, x, training=None):
        pooled = adaptive_average_pool(x, self.kernel_size, self.kernel_size)
        kernel = self._mix(pooled, self.kernels, training)
        x_conv = dynamic_depthwise_conv2d(x, kernel)
        if self.biases is None:
            return x_conv
        return x_conv + self._mix(mean(x, axis=(1, 2), keepdims=True), self.biases, training)

    def _mix(self, u, candidates, training):
        """`Σ_g softmax_g(f(u)) · candidates_g`, of the shape of `u`."""
        _, height, width, channels = u.shape
        logits = self.expand(gelu(normalized(self.norm, self.squeeze, u, training)))
        shape = (-1, height * width, self.num_groups, channels)
        weights = softmax(reshape(logits, shape), axis=2)
        candidates = reshape(candidates, (self.num_groups, height * width, channels))
        mixed = ops.sum(weights * ops.transpose(candidates, (1, 0, 2)), axis=2)
        return reshape(mixed, (-1, height, width, channels))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "num_groups": self.num_groups,
            "reduction_ratio": self.reduction_ratio,
            "use_bias": self.use_bias,
        }
