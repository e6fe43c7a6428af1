"""What every test starts from: a seed, quick compilation on JAX, and float64 on JAX where it is asked for."""

import contextlib
import functools
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
def _compiles_quickly(request, monkeypatch):
    """Lets XLA optimise on JAX only where a test judges what users get; it takes a third of the time of all others.

    XLA's older way to write a fusion's code compiles in half of the time of the one that is default now: a tiny
    TransXNet's training step in 14 instead of 28 s.
    """
    if keras.config.backend() == "jax":
        import jax

        optimized = request.node.get_closest_marker("optimized") is not None
        jax.config.update("jax_disable_most_optimizations", not optimized)
        if not optimized and _has_older_emitters():
            # JAX has no public setting for it but those of a process and of each `jax.jit`, which Keras calls.
            from jax._src import compiler

            options = functools.partial(_with_older_emitters, compiler.get_compile_options)
            monkeypatch.setattr(compiler, "get_compile_options", options)


# Strings as XLA takes them.
OLDER_EMITTERS = {"xla_cpu_use_fusion_emitters": "False"}


@functools.cache
def _has_older_emitters():
    """Whether this XLA knows the option; another would refuse to compile with it."""
    import jax

    try:
        jax.jit(lambda x: x + 1, compiler_options=OLDER_EMITTERS)(1.0)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _with_older_emitters(get_compile_options, *args, **kwargs):
    given = kwargs.pop("env_options_overrides", None) or {}
    return get_compile_options(*args, env_options_overrides={**OLDER_EMITTERS, **given}, **kwargs)


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
