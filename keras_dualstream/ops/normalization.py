"""Batch, layer and group normalisation with one kernel per backend."""

import keras
from keras import ops

from keras_dualstream.ops.compiler import compiled_by_xla
from keras_dualstream.ops.compiler import converting_jax_to_tensorflow
from keras_dualstream.ops.compiler import in_tensorflow_graph_without_gradient
from keras_dualstream.ops.compiler import jax_on_cpu
from keras_dualstream.ops.compiler import pytorch_runs_inference
from keras_dualstream.ops.float64 import is_float64
from keras_dualstream.ops.float64 import mean as mean_of
from keras_dualstream.ops.half_precision import is_full_precision
from keras_dualstream.ops.jax_normalization import jax_normalization
from keras_dualstream.ops.pytorch_kernels import pytorch_batch_normalization
from keras_dualstream.ops.pytorch_kernels import pytorch_group_normalization
from keras_dualstream.ops.pytorch_kernels import pytorch_layer_normalization
from keras_dualstream.ops.pytorch_kernels import pytorch_scale_and_shift
from keras_dualstream.ops.pytorch_kernels import pytorch_standardization
from keras_dualstream.ops.tensorflow_kernels import tensorflow_batch_normalization


def standardization(x, mean, deviation):
    """`(x - mean) / deviation`, channel by channel.

    Args:
        x: float tensor `(batch, height, width, channels)`.
        mean: float tensor of one number a channel, such as `(channels,)`.
        deviation: float tensor of one number a channel.

    Returns:
        Tensor of the shape of `x`.
    """
    return pytorch_standardization(x, mean, deviation) if standardizes_rows(x) else (x - mean) / deviation


def standardizes_rows(x):
    """Whether `standardization` is faster than two operations of `keras.ops`: on PyTorch's maps."""
    return keras.config.backend() == "torch" and ops.is_tensor(x) and len(x.shape) == 4


def batch_normalization(x, mean, variance, gamma, beta, epsilon, overwrite=False):
    """Batch normalisation by given statistics, `(x - mean) / √(variance + epsilon) · gamma + beta`.

    Args:
        x: float tensor `(..., channels)`, of at least float32.
        mean: float tensor `(channels,)`.
        variance: float tensor `(channels,)`.
        gamma: float tensor `(channels,)` or `None`.
        beta: float tensor `(channels,)` or `None`.
        epsilon: float.
        overwrite: bool. Whether PyTorch may write over `x`. Defaults to `False`.

    Returns:
        Tensor of the shape and dtype of `x`.
    """
    if keras.config.backend() == "torch":
        if overwrite and pytorch_runs_inference():
            return pytorch_scale_and_shift(x, *scale_and_shift_of(mean, variance, gamma, beta, epsilon), out=x)
        return pytorch_batch_normalization(x, gamma, beta, epsilon, mean, variance)[0]
    if _has_tensorflow_kernel(x) and not in_tensorflow_graph_without_gradient():
        return tensorflow_batch_normalization(x, gamma, beta, epsilon, mean, variance)[0]
    # In a graph TensorFlow writes a product and a sum over `x` where nothing else reads it, and its kernel into new
    # memory, which the system clears page by page: without it TransXNet-T and S predict in 0.84 of the time.
    return _by_channel(x, mean, variance, gamma, beta, epsilon)


def scale_and_shift_of(mean, variance, gamma, beta, epsilon):
    """`s = γ / √(σ² + ε)` and `t = β - μ · s`, so that a batch normalisation by given statistics is `x · s + t`.

    Arguments are those of `batch_normalization`.

    Returns:
        Tensors of the shape of `variance`.
    """
    scale = ops.rsqrt(variance + epsilon)
    scale = scale if gamma is None else scale * gamma
    shift = -mean * scale
    return scale, shift if beta is None else shift + beta


def batch_normalization_of_batch(x, gamma, beta, epsilon):
    """Batch normalisation by the batch's own statistics over all axes but the last.

    Args:
        x: float tensor `(..., channels)`, of at least float32.
        gamma: float tensor `(channels,)` or `None`.
        beta: float tensor `(channels,)` or `None`.
        epsilon: float.

    Returns:
        Tensor of the shape and dtype of `x`, and the mean and the (biased)
        variance that normalised it; gradients go through the first.
    """
    if keras.config.backend() == "torch":
        return pytorch_batch_normalization(x, gamma, beta, epsilon)
    if _has_tensorflow_kernel(x):
        return tensorflow_batch_normalization(x, gamma, beta, epsilon)
    y, mean, variance = _normalize(x, tuple(range(len(x.shape) - 1)), gamma, beta, epsilon)
    return y, ops.reshape(mean, (-1,)), ops.reshape(variance, (-1,))


def batch_normalization_of_gelu(x, gamma, beta, epsilon):
    """`batch_normalization_of_batch(gelu(x), gamma, beta, epsilon)`, whose backward pass keeps no map but `x`.

    Where `normalizes_gelu_at_once(x)`. Arguments and results are those of `batch_normalization_of_batch`.
    """
    y, mean, variance = jax_normalization(x, gamma, beta, epsilon, tuple(range(len(x.shape) - 1)), gelu_first=True)
    return y, ops.reshape(mean, (-1,)), ops.reshape(variance, (-1,))


def normalizes_gelu_at_once(x):
    """Whether `batch_normalization_of_gelu` takes `x`: on JAX' CPU, where TensorFlow need not understand it."""
    fits = jax_on_cpu() and is_full_precision(x.dtype) and ops.is_tensor(x)
    return fits and not converting_jax_to_tensorflow()


def layer_normalization(x, gamma, beta, epsilon):
    """Normalisation of each position over its channels.

    Args:
        x: float tensor `(..., channels)`, of at least float32.
        gamma: float tensor `(channels,)` or `None`.
        beta: float tensor `(channels,)` or `None`.
        epsilon: float.

    Returns:
        Tensor of the shape and dtype of `x`.
    """
    if keras.config.backend() == "torch":
        return pytorch_layer_normalization(x, gamma, beta, epsilon)
    if is_float64(x) or jax_on_cpu():
        return _normalize(x, (len(x.shape) - 1,), gamma, beta, epsilon)[0]
    return ops.layer_normalization(x, gamma, beta, axis=-1, epsilon=epsilon)


def group_normalization(x, gamma, beta, epsilon):
    """Normalisation of each sample over all its positions and channels.

    Args:
        x: float tensor `(batch, ..., channels)`, of at least float32.
        gamma: float tensor `(channels,)`.
        beta: float tensor `(channels,)`.
        epsilon: float.

    Returns:
        Tensor of the shape and dtype of `x`.
    """
    if keras.config.backend() == "torch":
        return pytorch_group_normalization(x, gamma, beta, epsilon)
    return _normalize(x, tuple(range(1, len(x.shape))), gamma, beta, epsilon)[0]


def _normalize(x, axes, gamma, beta, epsilon):
    """Normalises by mean and (biased) variance over some axes, and returns them too, these axes being of size 1."""
    if jax_on_cpu():
        return jax_normalization(x, gamma, beta, epsilon, axes)
    mean = mean_of(x, axes, keepdims=True)
    variance = mean_of(ops.square(x - mean), axes, keepdims=True)
    return _by_channel(x, mean, variance, gamma, beta, epsilon), mean, variance


def _has_tensorflow_kernel(x):
    maps = keras.config.backend() == "tensorflow" and len(x.shape) == 4 and not is_float64(x)
    return maps and not compiled_by_xla()


def _by_channel(x, mean, variance, gamma, beta, epsilon):
    """As one product and one sum per element, the way PyTorch does."""
    scale, shift = scale_and_shift_of(mean, variance, gamma, beta, epsilon)
    return x * scale + shift
