"""A GELU and the batch normalisation behind it as one."""

import keras

from keras_dualstream.ops.activation import gelu
from keras_dualstream.ops.activation import has_jax_gelu
from keras_dualstream.ops.normalization import batch_normalization_of_gelu


def normalized_gelu(norm, x, training=None):
    """`norm(gelu(x))`; in training on JAX's CPU as one function whose backward pass keeps no map but `x`.

    Args:
        norm: `BatchNormalization`.
        x: float tensor that nothing else needs.
        training: bool. Whether the batch's statistics normalise. Defaults to `None`.

    Returns:
        Float tensor, as `norm` gives it.
    """
    same_dtype = keras.backend.standardize_dtype(x.dtype) == norm.compute_dtype
    if training and norm.trainable and same_dtype and has_jax_gelu(x):
        return norm.normalize_batch(x, batch_normalization_of_gelu)
    return norm(gelu(x), training=training)
