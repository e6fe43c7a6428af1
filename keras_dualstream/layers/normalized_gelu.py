"""A GELU, the batch normalisation behind it and what reads that as one."""

import functools

import keras

from keras_dualstream.layers.recomputation import recomputed
from keras_dualstream.layers.recomputation import recomputes
from keras_dualstream.ops.activation import gelu
from keras_dualstream.ops.normalization import batch_normalization_of_batch
from keras_dualstream.ops.normalization import batch_normalization_of_gelu
from keras_dualstream.ops.normalization import normalizes_gelu_at_once


def from_normalized_gelu(function, layers, norm, x, training=None):
    """`function(norm(gelu(x)))`; a backward pass on JAX' CPU or in TensorFlow's graph keeps no map but `x`.

    On TensorFlow it keeps no argument of `function` either: a training step of TransXNet-T, batch 8 at 224 × 224,
    takes 1.8 instead of 2.4 to 2.9 GB, and 5 to 7% more time.

    Args:
        function: function of the normalised tensor, as `recomputed` takes it.
        layers: list of all layers with variables that it calls.
        norm: `BatchNormalization`.
        x: float tensor that nothing else needs.
        training: bool. Whether the batch's statistics normalise. Defaults to `None`.

    Returns:
        What `function` returns.
    """
    same_dtype = keras.backend.standardize_dtype(x.dtype) == norm.compute_dtype
    if training and norm.trainable and same_dtype:
        if normalizes_gelu_at_once(x):
            return function(norm.normalize_batch(x, batch_normalization_of_gelu))
        if recomputes(x, layers):

            def normalize(x, gamma, beta, epsilon):
                return recomputed(functools.partial(_from_normalized_gelu, function, epsilon), layers, x, gamma, beta)

            return norm.normalize_batch(x, normalize)
    return function(norm(gelu(x, at_once=True), training=training, overwrite=True))


def _from_normalized_gelu(function, epsilon, x, gamma, beta):
    y, *statistics = batch_normalization_of_batch(gelu(x), gamma, beta, epsilon)
    return function(y), *statistics
