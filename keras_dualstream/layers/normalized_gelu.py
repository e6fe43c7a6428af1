"""A GELU, the batch normalisation behind it and what reads that as one."""

import keras

from keras_dualstream.ops.activation import gelu
from keras_dualstream.ops.activation import has_jax_gelu
from keras_dualstream.ops.compiler import compiled_by_xla
from keras_dualstream.ops.normalization import batch_normalization_of_batch
from keras_dualstream.ops.normalization import batch_normalization_of_gelu
from keras_dualstream.ops.tensorflow_recomputation import tensorflow_recomputed


def from_normalized_gelu(function, layers, norm, x, training=None):
    """`function(norm(gelu(x)))`; in training on JAX' CPU and on TensorFlow the backward pass keeps no map but `x`.

    On TensorFlow it keeps no argument of `function` either: a training step of TransXNet-T, batch 8 at 224 × 224,
    takes 1.9 instead of 2.4 to 2.9 GB, and 5% more time.

    Args:
        function: function of the normalised tensor, whose own gradient needs no more than that.
        layers: list of the layers that `function` calls.
        norm: `BatchNormalization`.
        x: float tensor that nothing else needs.
        training: bool. Whether the batch's statistics normalise. Defaults to `None`.

    Returns:
        What `function` returns.
    """
    same_dtype = keras.backend.standardize_dtype(x.dtype) == norm.compute_dtype
    if training and norm.trainable and same_dtype:
        if has_jax_gelu(x):
            return function(norm.normalize_batch(x, batch_normalization_of_gelu))
        if _recomputes(x, layers):
            return norm.normalize_batch(x, _normalized_and_more(function, layers))
    return function(norm(gelu(x), training=training))


def _recomputes(x, layers):
    """Whether TensorFlow computes again what it would keep: in full precision, where XLA does not see that it does."""
    exact = keras.backend.standardize_dtype(x.dtype) in ("float32", "float64")
    plain = all(layer.quantization_mode is None and layer.activity_regularizer is None for layer in layers)
    return keras.config.backend() == "tensorflow" and exact and plain and not compiled_by_xla()


def _normalized_and_more(function, layers):
    """What `normalize_batch` calls, of the result of `function`."""
    variables = [variable for layer in layers for variable in layer.variables]

    def normalize(x, gamma, beta, epsilon):
        def compute(x, gamma, beta, *values):
            y, *statistics = batch_normalization_of_batch(gelu(x), gamma, beta, epsilon)
            with keras.StatelessScope(zip(variables, values, strict=True)):
                return function(y), *statistics

        return tensorflow_recomputed(compute, x, gamma, beta, *(variable.value for variable in variables))

    return normalize
