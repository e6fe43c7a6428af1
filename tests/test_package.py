"""Importing the package is light, and its docstrings tell the truth."""

import doctest
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys

import keras
import pytest
from helpers import one_backend

import keras_dualstream
from keras_dualstream import layers

MODULES = [module.name for module in pkgutil.walk_packages(keras_dualstream.__path__, "keras_dualstream.")]


def run(code):
    """Runs Python code in a fresh process on this backend and returns what it prints."""
    environment = {**os.environ, "KERAS_BACKEND": keras.config.backend(), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_import_brings_nothing_that_keras_does_not():
    found = run(
        "import sys, keras\n"
        "before = set(sys.modules)\n"
        "import keras_dualstream\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    assert found.strip() == "['keras_dualstream']"


def test_import_needs_no_other_backend():
    found = run("import sys, keras_dualstream; print({'tensorflow', 'jax', 'torch'} & set(sys.modules))")
    others = {"tensorflow", "torch", "matplotlib", "sklearn", "keras_hub"} - {keras.config.backend()}
    assert not any(repr(name) in found for name in others)


def test_public_names_are_public():
    for module in (keras_dualstream, layers, keras_dualstream.conversion):
        assert sorted(module.__all__) == list(module.__all__)
        for name in module.__all__:
            assert getattr(module, name).__doc__, name


@one_backend
@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    found = doctest.DocTestFinder(exclude_empty=True).find(
        module, globs={**vars(module), "keras": keras, "keras_dualstream": keras_dualstream}
    )
    for test in found:
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        messages = []
        runner.run(test, out=messages.append)
        assert not runner.failures, "".join(messages)


@pytest.mark.parametrize("name", layers.__all__)
def test_every_layer_has_an_example_and_explains_its_arguments(name):
    layer = getattr(layers, name)
    assert ">>>" in layer.__doc__
    keras_own = any(layer.__init__ is getattr(base, "__init__", None) for base in keras.layers.DepthwiseConv2D.__mro__)
    for argument in set() if keras_own else inspect.signature(layer.__init__).parameters.keys() - {"self", "kwargs"}:
        assert f"{argument}:" in layer.__doc__, argument
