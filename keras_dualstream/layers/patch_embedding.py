"""Overlapping patch embedding."""

import functools

import keras

from keras_dualstream.layers.float64 import BatchNormalization
from keras_dualstream.layers.float64 import LayerNormalization
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.initializers import conv_initializer

# PyTorch's momentum of 0.1 is Keras' 0.9.
NORMALIZATIONS = {"layer": LayerNormalization, "batch": functools.partial(BatchNormalization, momentum=0.9)}


@keras.saving.register_keras_serializable(package="keras_dualstream")
class PatchEmbedding(keras.layers.Layer):
    """Overlapping patch embedding, `y = Norm(Conv(x))`, padded as PyTorch does.

    The convolution is padded with `kernel_size // 2` zeros on every side (with a
    stride, `padding="same"` would pad only bottom and right), so a map of height
    `h` becomes one of height `⌈h / stride⌉` for odd kernels.

    Args:
        embed_dim: int. Channels of the result.
        kernel_size: int. Defaults to `3`.
        strides: int. Defaults to `2`.
        epsilon: float. Epsilon of the normalisation. Defaults to `1e-5`.
        normalization: `"layer"` or `"batch"`. Defaults to `"layer"`.
        use_bias: bool. Whether the convolution has a bias; `None` for one
            before layer normalisation only. Defaults to `None`.
        kernel_initializer: initializer of the convolution's kernel. Defaults to
            normal with variance `2 / fan_out`.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`.

    Returns:
        Tensor `(batch, ⌈height / strides⌉, ⌈width / strides⌉, embed_dim)`.

    Raises:
        ValueError: if `normalization` is neither.

    Example:

    >>> y = PatchEmbedding(16)(keras.ops.ones((1, 7, 10, 3)))
    >>> tuple(y.shape)
    (1, 4, 5, 16)

    Reference:
        Wang et al., "PVT v2", section 3.2 (2022).
    """

    def __init__(
        self,
        embed_dim,
        kernel_size=3,
        strides=2,
        epsilon=1e-5,
        normalization="layer",
        use_bias=None,
        kernel_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"`normalization` must be 'layer' or 'batch'. Received: normalization={normalization!r}")
        self.embed_dim = embed_dim
        self.kernel_size = kernel_size
        self.strides = strides
        self.epsilon = epsilon
        self.normalization = normalization
        self.use_bias = normalization == "layer" if use_bias is None else use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer or conv_initializer())
        options = {"dtype": self.dtype_policy}
        self.pad = keras.layers.ZeroPadding2D(kernel_size // 2, data_format="channels_last", name="pad", **options)
        self.projection = keras.layers.Conv2D(
            embed_dim,
            kernel_size,
            strides=strides,
            data_format="channels_last",
            use_bias=self.use_bias,
            kernel_initializer=self.kernel_initializer,
            name="projection",
            **options,
        )
        self.norm = NORMALIZATIONS[normalization](epsilon=epsilon, name="norm", **options)

    def build(self, input_shape):
        # Unbuilt, it would make Keras run the whole model eagerly before the first step, 20 s on JAX.
        self.pad.build(input_shape)
        self.projection.build(self.pad.compute_output_shape(input_shape))
        self.norm.build(self.compute_output_shape(input_shape))
        keep_frozen(self)

    def call(self, x, training=None):
        x = self.projection(self.pad(x))
        return self.norm(x, training=training) if self.normalization == "batch" else self.norm(x)

    def compute_output_shape(self, input_shape):
        return self.projection.compute_output_shape(self.pad.compute_output_shape(input_shape))

    def get_config(self):
        return {
            **super().get_config(),
            "embed_dim": self.embed_dim,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "epsilon": self.epsilon,
            "normalization": self.normalization,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
