"""Activations on JAX that keep only their input for the backward pass, and have no forward-mode derivatives."""

import functools
import math

from keras_dualstream.ops.float64 import exact_dtype
from keras_dualstream.ops.jax_program import apart
from keras_dualstream.ops.jax_recomputation import recomputed


def jax_gelu(x, at_once=False):
    """`x · (1 + erf(x / √2)) / 2`, in float32 for half precision, where the sum would cancel.

    `jax.nn.gelu` takes erfc, and twice as long: 3.3 ms instead of 1.7 for 8 × 28 × 28 × 512 on two cores, 0.62
    instead of 0.31 for 128 × 56 × 56 × 512 in bfloat16 on an H200. Its backward pass keeps three intermediate results
    besides the array; here it keeps none. In half precision it rounds 1 / √2 too, and errs a fifth more. TensorFlow
    lacks what erf becomes.

    As a program of its own (`at_once`) no reader takes its last product apart from the error function: with that in
    the feed-forward network of TransXNet-S, 8 × 56 × 56 × 384, XLA's buffer of a prediction is 149 instead of 168 MB.
    """
    return recomputed(_gelu_at_once() if at_once else exact_gelu)(x)


@functools.cache
def _gelu_at_once():
    return apart(exact_gelu)


def jax_silu(x):
    """`x · (1 + tanh(x / 2)) / 2`, not for half precision, where the sum cancels.

    `jax.nn.silu` divides, and takes 1.9 ms instead of 1.5 for 8 × 112 × 112 × 24 on two cores. Its backward pass keeps
    two intermediate results besides the array; here it keeps none.
    """
    return recomputed(_silu)(x)


def exact_gelu(x):
    """The formula of `jax_gelu` alone, for a backward pass that starts from `x` anyway."""
    from jax import lax

    exact = x.astype(exact_dtype(x.dtype))
    return (0.5 * exact * (1.0 + lax.erf(exact * math.sqrt(0.5)))).astype(x.dtype)


def _silu(x):
    import jax.numpy as jnp

    return x * (0.5 + 0.5 * jnp.tanh(0.5 * x))
