"""Patch embedding, overlapping or not."""

import functools

import keras

from keras_dualstream.layers.convolution import Conv2D
from keras_dualstream.layers.float64 import BatchNormalization
from keras_dualstream.layers.float64 import LayerNormalization
from keras_dualstream.layers.folding import normalized
from keras_dualstream.layers.freezing import keep_frozen
from keras_dualstream.layers.initializers import conv_initializer
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.ops.activation import silu

# PyTorch's momentum of 0.1 is Keras' 0.9.
NORMALIZATIONS = {"layer": LayerNormalization, "batch": functools.partial(BatchNormalization, momentum=0.9), None: None}


@keras.saving.register_keras_serializable(package="keras_dualstream")
class PatchEmbedding(NestedCall, keras.layers.Layer):
    """Patch embedding, `y = f(Norm(Conv(x)))` with an activation `f`, padded as PyTorch does.

    By default patches overlap: the convolution is padded with `kernel_size // 2`
    zeros on every side (with a stride, `padding="same"` would pad only bottom
    and right), so a map of height `h` becomes one of height `⌈h / stride⌉` for
    odd kernels. With `padding=0` and a kernel of the size of the stride they do
    not, and a map of height `h` becomes one of height `⌊h / stride⌋`.

    Args:
        embed_dim: int. Channels of the result.
        kernel_size: int. Defaults to `3`.
        strides: int. Defaults to `2`.
        epsilon: float. Epsilon of the normalisation. Defaults to `1e-5`.
        normalization: `"layer"`, `"batch"` or `None` for none. Defaults to `"layer"`.
        use_bias: bool. Whether the convolution has a bias; `None` for one
            unless batch normalisation follows. Defaults to `None`.
        kernel_initializer: initializer of the convolution's kernel. Defaults to
            normal with variance `2 / fan_out`.
        padding: int. Zeros on every side; `None` for `kernel_size // 2`.
            Defaults to `None`.
        activation: name or function. Defaults to `None` for none.

    Call arguments:
        x: float tensor `(batch, height, width, channels)`.

    Returns:
        Tensor `(batch, new_height, new_width, embed_dim)` with `new_height` of
        `⌊(height + 2 · padding - kernel_size) / strides⌋ + 1`, width alike.

    Raises:
        ValueError: if `normalization` or `padding` is none of these, or the
            map is smaller than a patch.

    Example:

    >>> y = PatchEmbedding(16)(keras.ops.ones((1, 7, 10, 3)))
    >>> tuple(y.shape)
    (1, 4, 5, 16)
    >>> y = PatchEmbedding(16, kernel_size=4, strides=4, normalization=None, padding=0)(keras.ops.ones((1, 9, 12, 3)))
    >>> tuple(y.shape)
    (1, 2, 3, 16)

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
        padding=None,
        activation=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"`normalization` must be 'layer', 'batch' or None. Received: normalization={normalization!r}"
            )
        if padding is not None and padding < 0:
            raise ValueError(f"`padding` must be a number of zeros or None. Received: padding={padding}")
        self.embed_dim = embed_dim
        self.kernel_size = kernel_size
        self.strides = strides
        self.epsilon = epsilon
        self.normalization = normalization
        self.use_bias = normalization != "batch" if use_bias is None else use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer or conv_initializer())
        self.padding = padding
        self.activation = silu if activation == "silu" else keras.activations.get(activation)
        options = {"dtype": self.dtype_policy}
        self.zeros = kernel_size // 2 if padding is None else padding
        self.projection = Conv2D(
            embed_dim,
            kernel_size,
            strides=strides,
            zeros=self.zeros,
            use_bias=self.use_bias,
            kernel_initializer=self.kernel_initializer,
            name="projection",
            **options,
        )
        make_norm = NORMALIZATIONS[normalization]
        self.norm = None if make_norm is None else make_norm(epsilon=epsilon, name="norm", **options)

    def build(self, input_shape):
        self._check_size(input_shape)
        self.projection.build(input_shape)
        if self.norm is not None:
            self.norm.build(self.compute_output_shape(input_shape))
        keep_frozen(self)

    def call(self, x, training=None):
        self._check_size(x.shape)
        return self.activation(self._embed(x, training))

    def _embed(self, x, training):
        if self.normalization == "batch":
            return normalized(self.norm, self.projection, x, training)
        x = self.projection(x)
        return x if self.norm is None else self.norm(x)

    def _check_size(self, input_shape):
        least = self.kernel_size - 2 * self.zeros
        if any(size is not None and size < least for size in input_shape[1:3]):
            raise ValueError(
                f"The feature map must be at least {least}x{least} to be cut into patches of {self.kernel_size}x"
                f"{self.kernel_size}. Received: {input_shape[1]}x{input_shape[2]}"
            )

    def compute_output_shape(self, input_shape):
        self._check_size(input_shape)
        return self.projection.compute_output_shape(input_shape)

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
            "padding": self.padding,
            "activation": "silu" if self.activation is silu else keras.activations.serialize(self.activation),
        }
