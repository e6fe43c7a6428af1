"""The initial values the papers train from, made on the host.

Keras makes them on the device, where JAX compiles a program for every shape: of drawn ones that was 19 of the 20
seconds that a small Dual-ViT of 270 weights took to build; of zeros and ones 0.6 s and 35 MB of TransXNet-T, as JAX
0.10 keeps 1.4 MB of each program, however small.
"""

import math

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="keras_dualstream")
class TruncatedNormal(keras.initializers.TruncatedNormal):
    """`keras.initializers.TruncatedNormal` drawn by NumPy: a normal distribution cut at two standard deviations.

    Args:
        **kwargs: the arguments of `keras.initializers.TruncatedNormal`.
    """

    def __call__(self, shape, dtype=None):
        rng = np.random.default_rng(self.seed)
        values = rng.standard_normal(shape)
        beyond = np.abs(values) > 2
        while beyond.any():
            values[beyond] = rng.standard_normal(np.count_nonzero(beyond))
            beyond = np.abs(values) > 2
        return _tensor(self.mean + self.stddev * values, dtype)


@keras.saving.register_keras_serializable(package="keras_dualstream")
class FanOutNormal(keras.initializers.RandomNormal):
    """Normal distribution with variance `2 / fan_out`, drawn by NumPy, for kernels `(height, width, …, outputs)`.

    Args:
        seed: int. Seed of the draws. Defaults to `None` (a random seed).
    """

    def __init__(self, seed=None):
        super().__init__(seed=seed)

    def get_config(self):
        return {"seed": super().get_config()["seed"]}

    def __call__(self, shape, dtype=None):
        stddev = math.sqrt(2.0 / (math.prod(shape[:-2]) * shape[-1]))
        return _tensor(stddev * np.random.default_rng(self.seed).standard_normal(shape), dtype)


@keras.saving.register_keras_serializable(package="keras_dualstream")
class GlorotUniform(keras.initializers.GlorotUniform):
    """`keras.initializers.GlorotUniform` drawn by NumPy, for kernels `(height, width, …, inputs, outputs)`.

    Args:
        **kwargs: the arguments of `keras.initializers.GlorotUniform`.
    """

    def __call__(self, shape, dtype=None):
        limit = math.sqrt(6.0 / (math.prod(shape[:-2]) * (shape[-2] + shape[-1])))
        return _tensor(np.random.default_rng(self.seed).uniform(-limit, limit, shape), dtype)


@keras.saving.register_keras_serializable(package="keras_dualstream")
class Constant(keras.initializers.Constant):
    """`keras.initializers.Constant` made by NumPy.

    Args:
        value: float. Defaults to `0.0`.
    """

    def __call__(self, shape, dtype=None):
        return _tensor(np.full(shape, self.value), dtype)


class ConstantsOnHost:
    """Base of Keras' layers whose zeros, ones and other constants NumPy makes; their configs have Keras' own."""

    def add_weight(self, *args, initializer=None, **kwargs):
        return super().add_weight(*args, initializer=_on_host(keras.initializers.get(initializer)), **kwargs)


def linear_initializer():
    """Truncated normal with standard deviation 0.02, for kernels of linear layers."""
    return TruncatedNormal(stddev=0.02)


def conv_initializer():
    """Normal with variance `2 / fan_out`, for kernels of convolutions."""
    return FanOutNormal()


def _on_host(initializer):
    """The initializer, or what makes the same by NumPy where it is one of Keras' constants."""
    if type(initializer) is keras.initializers.Constant:
        return Constant(initializer.value)
    value = {keras.initializers.Zeros: 0.0, keras.initializers.Ones: 1.0}.get(type(initializer))
    return initializer if value is None else Constant(value)


def _tensor(values, dtype):
    """A tensor of values, which have its dtype before JAX gets them: it would compile a program for every shape.

    As it does for bfloat16, to which Keras casts on JAX.
    """
    dtype = keras.backend.standardize_dtype(dtype)
    return ops.convert_to_tensor(values.astype(dtype), dtype=dtype)
