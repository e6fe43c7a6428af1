"""Keras' linear and normalisation layers, kept in float64 under a float64 policy.

Keras' type promotion turns float64 into float32 on JAX and PyTorch, so its own
layers lose nine digits there: the error of a normalisation is 2e-7 instead of
4e-16. Under any other policy these layers compute what Keras' own do.
"""

import keras
import numpy as np
from keras import ops

from keras_dualstream.layers.initializers import ConstantsOnHost
from keras_dualstream.layers.nested_call import NestedCall
from keras_dualstream.ops.compiler import watched_by_pytorch
from keras_dualstream.ops.float64 import exact_dtype
from keras_dualstream.ops.float64 import mean as mean_of
from keras_dualstream.ops.linear import linear
from keras_dualstream.ops.normalization import batch_normalization
from keras_dualstream.ops.normalization import batch_normalization_of_batch
from keras_dualstream.ops.normalization import layer_normalization
from keras_dualstream.ops.normalization import scale_and_shift_of
from keras_dualstream.ops.normalization import standardization
from keras_dualstream.ops.normalization import standardizes_rows


@keras.saving.register_keras_serializable(package="keras_dualstream")
class Dense(NestedCall, ConstantsOnHost, keras.layers.Dense):
    """`keras.layers.Dense` that computes in float64 under a float64 policy.

    Args:
        *args, **kwargs: the arguments of `keras.layers.Dense`.
    """

    def call(self, inputs, training=None):
        x = self.convolve(inputs, self.kernel, self.bias)
        return x if self.activation is None else self.activation(x)

    def convolve(self, inputs, kernel, bias):
        """The linear map with another kernel and bias than the layer's own."""
        return linear(inputs, kernel, bias)


@keras.saving.register_keras_serializable(package="keras_dualstream")
class LayerNormalization(NestedCall, ConstantsOnHost, keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` over the last axis, in float64 under a float64 policy.

    Args:
        **kwargs: the arguments of `keras.layers.LayerNormalization`, but for
            `axis` and `rms_scaling`.
    """

    def call(self, inputs):
        dtype = exact_dtype(self.compute_dtype)
        x, gamma, beta = (each if each is None else ops.cast(each, dtype) for each in (inputs, self.gamma, self.beta))
        return ops.cast(layer_normalization(x, gamma, beta, self.epsilon), self.compute_dtype)


@keras.saving.register_keras_serializable(package="keras_dualstream")
class BatchNormalization(NestedCall, ConstantsOnHost, keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` over the last axis, in float64 under a float64 policy.

    Args:
        **kwargs: the arguments of `keras.layers.BatchNormalization`, but for
            `axis`, `synchronized` and `renorm`.

    Call arguments:
        inputs: float tensor `(..., channels)`; with `overwrite`, one that nothing else needs.
        training: bool. Whether the batch's statistics normalise.
        mask: bool tensor, as `keras.layers.BatchNormalization` takes it.
        overwrite: bool. Whether PyTorch may write over `inputs` at inference. Defaults to `False`.
    """

    def call(self, inputs, training=None, mask=None, overwrite=False):
        if mask is not None:
            return super().call(inputs, training=training, mask=mask)
        if training and self.trainable:
            return self.normalize_batch(inputs)
        tensors = self._exactly(inputs, *self._statistics(), self.gamma, self.beta)
        # A hook may keep what the layer was given.
        overwrite = overwrite and not watched_by_pytorch(self)
        return ops.cast(batch_normalization(*tensors, self.epsilon, overwrite), self.compute_dtype)

    def normalize_batch(self, inputs, normalize=batch_normalization_of_batch):
        """The layer in training: by the batch's own statistics, of which the running ones take their share.

        Args:
            inputs: float tensor `(..., channels)`.
            normalize: function that does so, with the arguments and results of
                `ops.normalization.batch_normalization_of_batch`. Defaults to that one.

        Returns:
            Tensor of the shape of `inputs`, in the layer's dtype.
        """
        y, *of_batch = normalize(*self._exactly(inputs, self.gamma, self.beta), self.epsilon)
        share = 1.0 - self.momentum
        for running, old, new in zip(self._statistics(), self._exactly(*self._statistics()), of_batch, strict=True):
            running.assign(old * self.momentum + new * share)
        return ops.cast(y, self.compute_dtype)

    def _statistics(self):
        return self.moving_mean, self.moving_variance

    def _exactly(self, *tensors):
        """Tensors in the dtype that normalises, and `None` where there is none."""
        dtype = exact_dtype(self.compute_dtype)
        return [x if x is None else ops.cast(x, dtype) for x in tensors]

    def scale_and_shift(self):
        """`s` and `t` of `ops.normalization.scale_and_shift_of`: the layer at inference is `x · s + t`."""
        weights = (*self._statistics(), self.gamma, self.beta)
        # Tensors, because products of variables are float32 on JAX.
        return scale_and_shift_of(*(w if w is None else ops.convert_to_tensor(w) for w in weights), self.epsilon)


@keras.saving.register_keras_serializable(package="keras_dualstream")
class Normalization(NestedCall, keras.layers.Normalization):
    """`keras.layers.Normalization` over the last axis with given statistics, in float64 under a float64 policy.

    Args:
        **kwargs: the arguments of `keras.layers.Normalization`, with `mean` and `variance` of every channel, but for
            `axis` and `invert`.
    """

    def call(self, inputs):
        if self.compute_dtype == "float64":
            # NumPy constants: Keras holds the statistics in float32.
            statistics = np.array(self.input_mean, "float64"), np.array(self.input_variance, "float64") ** 0.5
            mean, deviation = (ops.convert_to_tensor(each, dtype="float64") for each in statistics)
        elif standardizes_rows(inputs):
            mean, deviation = self.mean, ops.sqrt(self.variance)
        else:
            return super().call(inputs)
        return standardization(ops.cast(inputs, self.compute_dtype), mean, deviation)


@keras.saving.register_keras_serializable(package="keras_dualstream")
class GlobalAveragePooling2D(NestedCall, keras.layers.GlobalAveragePooling2D):
    """`keras.layers.GlobalAveragePooling2D` of channels-last maps, in float64 under a float64 policy.

    Args:
        **kwargs: the arguments of `keras.layers.GlobalAveragePooling2D`.
    """

    def call(self, inputs):
        if self.compute_dtype != "float64":
            return super().call(inputs)
        return mean_of(inputs, axis=(1, 2))
