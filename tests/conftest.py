"""What every test starts from: a seed, quick compilation on JAX, and float64 on JAX where it is asked for."""

import contextlib
import os
import pathlib

# Most of a test's time on JAX is compiling what another test or process has compiled already. Set before JAX is
# imported, and for the processes that tests start.
CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import keras  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(7)


@pytest.fixture(autouse=True)
def _compiles_quickly(request):
    """Lets XLA optimise on JAX only where a test judges what users get; it takes a third of the time of all others."""
    if keras.config.backend() == "jax":
        import jax

        jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("optimized") is None)


@pytest.fixture(autouse=True, scope="module")
def _forgets_programs():
    """Gives back the memory of what a file's tests compiled."""
    yield
    if keras.config.backend() == "jax":
        import jax

        jax.clear_caches()


@pytest.fixture
def float64():
    """Lets JAX hold float64 for the time of a test."""
    context = contextlib.nullcontext()
    if keras.config.backend() == "jax":
        import jax

        context = jax.enable_x64(True)
    with context:
        yield "float64"
