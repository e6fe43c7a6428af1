"""Linear maps with one kernel per backend."""

import keras
from keras import ops

from keras_dualstream.ops.compiler import jax_on_cpu
from keras_dualstream.ops.compiler import tensorflow_on_cpu
from keras_dualstream.ops.float64 import is_float64
from keras_dualstream.ops.half_precision import for_sums
from keras_dualstream.ops.jax_linear import jax_linear
from keras_dualstream.ops.pytorch_kernels import pytorch_linear
from keras_dualstream.ops.pytorch_kernels import pytorch_scale_and_shift
from keras_dualstream.ops.tensorflow_kernels import tensorflow_matmul


def linear(x, kernel, bias=None):
    """`x · kernel + bias` over the last axis.

    Args:
        x: float tensor `(..., channels)`.
        kernel: float tensor `(channels, units)`.
        bias: float tensor `(units,)`. Defaults to `None`.

    Returns:
        Tensor `(..., units)` of the dtype of `x`.
    """
    if keras.config.backend() == "torch":
        x, kernel = ops.convert_to_tensor(x), ops.convert_to_tensor(kernel)
        return pytorch_linear(x, kernel, bias if bias is None else ops.convert_to_tensor(bias))
    if len(x.shape) > 2:
        # TensorFlow's gradient of a float64 einsum with more axes builds one product per position; XLA's gradient of
        # the kernel takes up to twice as long (8 × 56 × 56, 64 → 512 on one core: 34 ms instead of 14). The bias goes
        # to the rows, since TensorFlow knows products with one (with equal parts split at once, DSNetT took 220 ms
        # instead of 224).
        y = linear(ops.reshape(x, (-1, x.shape[-1])), kernel, bias)
        batch = -1 if x.shape[0] is None else x.shape[0]
        return ops.reshape(y, (batch, *ops.shape(x)[1:-1], kernel.shape[-1]))
    y = _product(x, kernel)
    return y if bias is None else y + bias


def _product(x, kernel):
    if jax_on_cpu() and len(x.shape) == 2:
        x, kernel = ops.convert_to_tensor(x), ops.convert_to_tensor(kernel)
        if x.dtype == kernel.dtype:
            return jax_linear(x, kernel)
    if is_float64(x):
        return ops.einsum("ni,io->no", x, kernel)
    exact = for_sums(x)
    if exact is not x:
        return ops.cast(_product(exact, ops.cast(kernel, exact.dtype)), x.dtype)
    if _has_few_units(x, kernel):
        return tensorflow_matmul(x, kernel)
    return ops.matmul(x, kernel)


def _has_few_units(x, kernel):
    """Whether the gradient of a kernel of these units takes twice as long on TensorFlow's CPU as the transposed one."""
    if not tensorflow_on_cpu() or not ops.is_tensor(x):
        return False
    same = keras.backend.standardize_dtype(x.dtype) == keras.backend.standardize_dtype(kernel.dtype)
    return same and x.shape[-1] >= 2 * kernel.shape[-1]


def scale_and_shift(x, gamma, beta):
    """`x · gamma + beta`, channel by channel.

    Args:
        x: float tensor `(..., channels)`.
        gamma: float tensor `(channels,)`.
        beta: float tensor `(channels,)`.

    Returns:
        Tensor of the shape of `x`.
    """
    if keras.config.backend() == "torch":
        return pytorch_scale_and_shift(*(ops.convert_to_tensor(each) for each in (x, gamma, beta)))
    return x * gamma + beta
