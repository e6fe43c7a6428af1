"""Programs of their own on JAX, and what their backward passes keep."""

import keras
import numpy as np
import pytest

from keras_dualstream.ops.activation import gelu
from keras_dualstream.ops.jax_program import apart
from keras_dualstream.ops.jax_recomputation import keep
from keras_dualstream.ops.jax_recomputation import keeping_little

pytestmark = pytest.mark.skipif(keras.config.backend() != "jax", reason="Only JAX has them.")


def program_text(function, x):
    import jax

    return jax.jit(lambda x: function(x) * function(x + 1)).lower(x).compile().as_text()


@pytest.mark.optimized
def test_xla_does_not_merge_them_with_what_is_around():
    x = np.ones((4, 8), "float32")

    def function(x):
        # JAX has a program of its own for zeros around an array.
        return keras.ops.sum(keras.ops.pad(keras.ops.exp(x), ((0, 0), (1, 1))), axis=-1)

    assert program_text(apart(function), x).count("call(") == 2
    assert "call(" not in program_text(function, x)


def test_a_function_apart_gives_and_takes_trees():
    @apart
    def function(tree, x):
        return {"sum": tree["a"] + x}, None

    result, nothing = function({"a": np.float32(1)}, np.float32(2))
    assert result["sum"] == 3
    assert nothing is None


@pytest.mark.parametrize(("mark", "expected"), [(keep, 3), (lambda x: x, 2)])
def test_the_backward_pass_keeps_products_and_what_is_marked(mark, expected):
    import jax

    kernel = np.ones((6, 5), "float32")

    def function(x):
        y = keras.ops.matmul(keras.ops.tanh(x), kernel)
        return mark(gelu(keras.ops.sin(y))) ** 3

    def large(function):
        backward = jax.vjp(function, np.ones((7, 6), "float32"))[1]
        return [leaf.shape for leaf in jax.tree.leaves(backward) if np.size(leaf) > 30]

    assert len(large(keeping_little(function))) == expected
    assert len(large(function)) > 3


def test_of_a_gradient_only_the_two_passes_are_apart():
    import jax

    def loss(x):
        return keras.ops.sum(keeping_little(lambda x: keras.ops.pad(keras.ops.sin(x) ** 3, ((0, 0), (1, 1))))(x))

    text = jax.jit(jax.grad(loss)).lower(np.ones((4, 8), "float32")).as_text()
    marked = [line for line in text.splitlines() if "inlineable" in line]
    assert len(marked) == 2
    assert all("call @" in line for line in marked)


@pytest.mark.parametrize(("mantissa_bits", "expected"), [(23, 0), (10, 1)])
def test_what_is_kept_is_rounded_only_where_it_changes(mantissa_bits, expected):
    import jax

    def function(x):
        rounded = jax.lax.reduce_precision(keras.ops.matmul(x, x), 8, mantissa_bits)
        return keras.ops.matmul(keras.ops.sin(rounded), rounded)

    def loss(function):
        return lambda x: keras.ops.sum(function(x))

    x = np.linspace(0, 1, 16, dtype="float32").reshape(4, 4)
    forward = jax.make_jaxpr(lambda x: jax.vjp(loss(keeping_little(function)), x)[0])(x)
    assert str(forward).count("reduce_precision[") == expected
    given, plain = (jax.jit(jax.grad(loss(f)))(x) for f in (keeping_little(function), function))
    np.testing.assert_allclose(given, plain, rtol=1e-6)
