"""The initial values the papers train from."""

import keras


def linear_initializer():
    """Truncated normal with standard deviation 0.02, for kernels of linear layers."""
    return keras.initializers.TruncatedNormal(stddev=0.02)


def conv_initializer():
    """Normal with variance `2 / fan_out`, for kernels of convolutions."""
    return keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="untruncated_normal")
