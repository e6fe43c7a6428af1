"""What every test starts from: a seed, and float64 on JAX where it is asked for."""

import contextlib

import keras
import pytest


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(7)


@pytest.fixture
def float64():
    """Lets JAX hold float64 for the time of a test."""
    context = contextlib.nullcontext()
    if keras.config.backend() == "jax":
        import jax

        context = jax.enable_x64(True)
    with context:
        yield "float64"
