"""The initial values the papers train from, drawn on the host.

Keras draws them on the device, where JAX compiles a program for every shape: 19
of the 20 seconds that a small Dual-ViT of 270 weights took to build.
"""

import math

import keras
import numpy as np
from keras import ops

from keras_dualstream.ops.float64 import exact_dtype


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


def linear_initializer():
    """Truncated normal with standard deviation 0.02, for kernels of linear layers."""
    return TruncatedNormal(stddev=0.02)


def conv_initializer():
    """Normal with variance `2 / fan_out`, for kernels of convolutions."""
    return FanOutNormal()


def _tensor(values, dtype):
    """A tensor of drawn values, in float32 before JAX gets them: it would compile a program for every shape."""
    return ops.convert_to_tensor(values.astype(exact_dtype(dtype)), dtype=dtype)
