"""Depthwise convolution equals the loop over its taps."""

import functools

import keras
import numpy as np
import pytest
from helpers import Convolution
from helpers import gradient_function
from helpers import gradients_by_differences
from helpers import gradients_of
from helpers import relative_error
from helpers import to_numpy
from keras import ops

from keras_dualstream.ops import compiler
from keras_dualstream.ops import depthwise
from keras_dualstream.ops.depthwise import depthwise_conv2d
from keras_dualstream.ops.depthwise import depthwise_conv2d_of_parts
from keras_dualstream.ops.depthwise import dynamic_depthwise_conv2d

pytestmark = pytest.mark.optimized


def depthwise_by_loop(x, kernel, strides, padding, dilation):
    """One output pixel at a time, with TensorFlow's meaning of "same"."""
    reach = [(size - 1) * rate + 1 for size, rate in zip(kernel.shape, dilation, strict=False)]
    if not isinstance(padding, str):
        x, padding = np.pad(x, [(0, 0), *padding, (0, 0)]), "valid"
    if padding == "same":
        sizes = [-(-size // step) for size, step in zip(x.shape[1:3], strides, strict=True)]
        totals = [
            max((size - 1) * step + r - n, 0)
            for size, step, r, n in zip(sizes, strides, reach, x.shape[1:3], strict=True)
        ]
        x = np.pad(x, [(0, 0), *((total // 2, total - total // 2) for total in totals), (0, 0)])
    else:
        sizes = [(n - r) // step + 1 for n, r, step in zip(x.shape[1:3], reach, strides, strict=True)]
    y = np.zeros((len(x), *sizes, x.shape[-1]))
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            for u in range(kernel.shape[0]):
                for v in range(kernel.shape[1]):
                    pixel = x[:, i * strides[0] + u * dilation[0], j * strides[1] + v * dilation[1]]
                    y[:, i, j] += pixel * kernel[u, v, :, 0]
    return y


CASES = [
    ((7, 10), (3, 3), (1, 1), "same", (1, 1)),
    ((8, 9), (5, 3), (2, 2), "same", (1, 1)),
    ((8, 9), (5, 3), (2, 2), "valid", (1, 1)),
    ((9, 9), (4, 2), (1, 1), "same", (1, 1)),
    ((11, 12), (3, 3), (1, 1), "same", (2, 2)),
    ((5, 6), (7, 7), (1, 1), "same", (1, 1)),
    ((13, 10), (5, 5), (2, 2), ((2, 2), (2, 2)), (1, 1)),
    ((17, 9), (7, 7), (4, 4), ((3, 3), (3, 3)), (1, 1)),
    ((7, 6), (2, 3), (3, 3), ((3, 0), (1, 4)), (1, 1)),
    ((6, 5), (1, 1), (1, 1), "valid", (1, 1)),
    ((7, 10), (3, 4), (1, 1), ((1, 1), (1, 2)), (1, 1)),
    ((24, 21), (3, 3), (1, 1), "same", (1, 1)),
]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_loop(case):
    (size, kernel_size, *geometry) = case
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, 4)).astype("float32")
    kernel = rng.standard_normal((*kernel_size, 4, 1)).astype("float32")
    expected = depthwise_by_loop(x, kernel, *geometry)
    found = depthwise_conv2d(ops.convert_to_tensor(x), ops.convert_to_tensor(kernel), *geometry)
    assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("samples", [1, 3])
def test_one_kernel_per_sample_equals_the_loop(case, samples):
    (size, kernel_size, strides, padding, _) = case
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, *size, 4)).astype("float32")
    kernel = rng.standard_normal((samples, *kernel_size, 4)).astype("float32")
    expected = np.concatenate(
        [depthwise_by_loop(x[i : i + 1], kernel[i, ..., None], strides, padding, (1, 1)) for i in range(samples)]
    )
    found = dynamic_depthwise_conv2d(ops.convert_to_tensor(x), ops.convert_to_tensor(kernel), strides, padding)
    assert relative_error(found, expected) < 1e-6


SMALL_CASES = [
    ((4, 5), (3, 2), (1, 1), "same", (1, 1)),
    ((5, 4), (3, 3), (2, 2), "same", (1, 1)),
    ((5, 6), (3, 3), (2, 3), ((1, 1), (1, 1)), (1, 1)),
    ((3, 4), (2, 2), (1, 1), ((3, 0), (1, 4)), (1, 1)),
    ((2, 3), (5, 5), (1, 1), "same", (1, 1)),
    ((6, 5), (2, 3), (2, 1), "valid", (1, 1)),
    ((3, 4), (1, 1), (1, 1), "same", (1, 1)),
]


@functools.cache
def gradient_case(case, samples, dynamic):
    """Map, kernel, weights of the outputs, and the gradients of the weighted sum."""
    size, kernel_size, strides, padding, dilation = case
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, *size, 2))
    kernel = rng.standard_normal((samples, *kernel_size, 2) if dynamic else (*kernel_size, 2, 1))

    def by_loop(x, kernel):
        kernels = kernel[..., None] if dynamic else [kernel] * samples
        pieces = [depthwise_by_loop(x[i : i + 1], kernels[i], strides, padding, dilation) for i in range(samples)]
        return np.concatenate(pieces)

    weights = rng.standard_normal(by_loop(x, kernel).shape)
    gradients = gradients_by_differences(lambda x, kernel: (by_loop(x, kernel) * weights).sum(), x, kernel)
    return x, kernel, weights, gradients


@pytest.mark.parametrize("case", [*SMALL_CASES, ((6, 7), (3, 2), (1, 1), "same", (2, 3))])
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("dynamic", [False, True])
def test_gradients_equal_differences(case, samples, dynamic):
    *_, strides, padding, dilation = case
    if dynamic and dilation != (1, 1):
        case = (*case[:4], dilation := (1, 1))
    x, kernel, weights, expected = gradient_case(case, samples, dynamic)

    def convolve(x, kernel):
        if dynamic:
            return dynamic_depthwise_conv2d(x, kernel, strides, padding)
        return depthwise_conv2d(x, kernel, strides, padding, dilation)

    layer = Convolution(x.astype("float32"), kernel.astype("float32"), convolve)
    _, gradients = gradient_function(layer, lambda total: total)(weights.astype("float32"))
    for found, exact in zip(gradients, expected, strict=True):
        assert relative_error(found, exact) < 1e-6


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="XLA is an option on TensorFlow alone")
@pytest.mark.parametrize("case", SMALL_CASES)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("known_sizes", [False, True])
def test_tensorflow_under_xla_gives_the_same_values_and_gradients(case, dynamic, known_sizes):
    import tensorflow as tf

    *_, strides, padding, dilation = case
    x, kernel, weights, expected = gradient_case(case, 2, dynamic)
    x_spec = tf.TensorSpec(x.shape if known_sizes else (None, None, None, 2), "float32")
    kernel_spec = tf.TensorSpec(kernel.shape if known_sizes or not dynamic else (None, *kernel.shape[1:]), "float32")

    @tf.function(jit_compile=True, input_signature=[x_spec, kernel_spec])
    def compute(x, kernel):
        with tf.GradientTape() as tape:
            tape.watch((x, kernel))
            y = (
                dynamic_depthwise_conv2d(x, kernel, strides, padding)
                if dynamic
                else depthwise_conv2d(x, kernel, strides, padding, dilation)
            )
            total = tf.reduce_sum(y * weights.astype("float32"))
        return tape.gradient(total, (x, kernel))

    for found, exact in zip(compute(tf.constant(x, "float32"), tf.constant(kernel, "float32")), expected, strict=True):
        assert relative_error(found, exact) < 1e-6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_sums_in_single(dtype):
    """As many taps as there are would lose several bits of a sum kept in half precision."""
    rng = np.random.default_rng(0)
    x = ops.cast(ops.convert_to_tensor(rng.random((1, 9, 9, 4)).astype("float32")), dtype)
    kernel = ops.cast(ops.convert_to_tensor(rng.random((7, 7, 4, 1)).astype("float32")), dtype)
    exact = depthwise_by_loop(*(to_numpy(ops.cast(value, "float32")) for value in (x, kernel)), (1, 1), "same", (1, 1))
    unit = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    for found in (
        depthwise_conv2d(x, kernel, padding="same"),
        dynamic_depthwise_conv2d(x, ops.transpose(kernel, (3, 0, 1, 2))),
    ):
        assert keras.backend.standardize_dtype(found.dtype) == dtype
        assert relative_error(ops.cast(found, "float32"), exact) < unit


SIZE_KEEPING = [((7, 10), (3, 3), (1, 1)), ((9, 8), (4, 2), (1, 1)), ((5, 6), (7, 7), (2, 1)), ((6, 5), (1, 1), (1, 1))]


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize(("size", "kernel_size", "dilation_rate"), SIZE_KEEPING)
def test_a_residual_adds_the_input(size, kernel_size, dilation_rate, data_format):
    rng = np.random.default_rng(0)
    shape = (2, *size, 3) if data_format == "channels_last" else (2, 3, *size)
    x, kernel, bias = (rng.standard_normal(s).astype("float32") for s in (shape, (*kernel_size, 3, 1), (3,)))
    weights = rng.standard_normal(shape).astype("float32")

    def convolve(x, kernel, bias, residual=True):
        return depthwise_conv2d(x, kernel, (1, 1), "same", dilation_rate, data_format, bias, residual)

    def sum_outside(x, kernel, bias):
        return x + convolve(x, kernel, bias, residual=False)

    tensors = [ops.convert_to_tensor(array) for array in (x, kernel, bias)]
    assert relative_error(convolve(*tensors), sum_outside(*tensors)) < 1e-6
    found, expected = (gradients_of(f, weights, (x, kernel, bias), "float32") for f in (convolve, sum_outside))
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) < 1e-6


@pytest.mark.skipif(keras.config.backend() != "jax", reason="the others convolve part by part")
@pytest.mark.parametrize(("dtype", "unit"), [("float32", 1e-6), ("float16", 2**-10), ("bfloat16", 2**-7)])
@pytest.mark.parametrize("sizes", [(3,), (1, 2), (2, 3, 1)])
def test_parts_at_once_are_one_convolution_each(sizes, dtype, unit):
    rng = np.random.default_rng(0)
    x, weights = rng.random((2, 2, 7, 6, sum(sizes))).astype("float32")
    kernels = [rng.random((2 * i + 1, 2 * i + 1, size, 1)).astype("float32") / 9 for i, size in enumerate(sizes)]
    biases = [rng.random(size).astype("float32") for size in sizes]
    arrays = [np.asarray(ops.cast(ops.cast(array, dtype), "float32")) for array in (x, *kernels, *biases)]

    def at_once(x, *others):
        return depthwise_conv2d_of_parts(x, others[: len(sizes)], others[len(sizes) :])

    def part_by_part(x, *others):
        parts = ops.split(x, np.cumsum(sizes)[:-1].tolist(), axis=-1)
        kernels, biases = others[: len(sizes)], others[len(sizes) :]
        convolved = (depthwise_conv2d(*each, padding="same") for each in zip(parts, kernels, strict=True))
        sums = [part + y + bias for part, y, bias in zip(parts, convolved, biases, strict=True)]
        return ops.concatenate(sums, axis=-1)

    exact = part_by_part(*map(ops.convert_to_tensor, arrays))
    found = at_once(*(ops.cast(array, dtype) for array in arrays))
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    assert relative_error(ops.cast(found, "float32"), exact) < unit
    expected = gradients_of(part_by_part, weights, arrays, "float32")
    for ours, theirs in zip(gradients_of(at_once, weights, arrays, dtype), expected, strict=True):
        assert relative_error(ops.cast(ours, "float32"), theirs) < 2 * unit


@pytest.mark.skipif(keras.config.backend() != "jax", reason="differentiates by JAX")
@pytest.mark.parametrize(
    ("size", "strides", "dilation_rate", "residual"), [(3, 1, 1, True), (3, 2, 1, False), (5, 1, 2, False)]
)
def test_gradients_by_both_have_derivatives_by_both(size, strides, dilation_rate, residual, float64):
    """Backwards once more and forwards, as the loops that sum for the kernel lack some: those of Keras' own form."""
    import jax

    rng = np.random.default_rng(0)
    x, kernel = jax.numpy.asarray(rng.standard_normal((2, 7, 6, 3))), jax.numpy.asarray(rng.random((size, size, 3, 1)))
    zeros = size // 2 * dilation_rate
    pads = ((0, 0), (zeros, zeros), (zeros, zeros), (0, 0))

    def ours(x, kernel):
        return depthwise_conv2d(x, kernel, (strides,) * 2, pads[1:3], (dilation_rate,) * 2, residual=residual)

    def theirs(x, kernel):
        y = ops.depthwise_conv(ops.pad(x, pads), kernel, strides, "valid", "channels_last", dilation_rate)
        return x + y if residual else y

    def gradient_of(convolve):
        return jax.grad(lambda x, kernel: ops.sum(ops.sin(convolve(x, kernel))), (0, 1))

    def backwards(convolve):
        return jax.grad(lambda *at: sum(ops.sum(g * g) for g in gradient_of(convolve)(*at)), (0, 1))(x, kernel)

    def forwards(convolve):
        return jax.jvp(gradient_of(convolve), (x, kernel), (jax.numpy.cos(x), jax.numpy.cos(kernel)))[1]

    for derivatives in (backwards, forwards):
        for found, expected in zip(derivatives(ours), derivatives(theirs), strict=True):
            assert relative_error(found, expected) < 1e-10


def test_a_multiplier_gives_each_channel_several():
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((1, 5, 6, 3)).astype("float32"), rng.standard_normal((3, 3, 3, 2)).astype("float32")
    found = ops.reshape(depthwise_conv2d(x, kernel, padding="same"), (1, 5, 6, 3, 2))
    for m in range(2):
        expected = depthwise_by_loop(x, kernel[..., m : m + 1], (1, 1), "same", (1, 1))
        assert relative_error(found[..., m], expected) < 1e-6


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("padding", ["same", ((0, 2), (1, 1))])
def test_channels_first_is_the_transpose(padding, multiplier):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 5, 6, 3)).astype("float32")
    kernel = rng.standard_normal((3, 3, 3, multiplier)).astype("float32")
    found = depthwise_conv2d(x.transpose(0, 3, 1, 2), kernel, padding=padding, data_format="channels_first")
    expected = depthwise_conv2d(x, kernel, padding=padding)
    assert relative_error(ops.transpose(found, (0, 2, 3, 1)), expected) < 1e-6


@pytest.mark.parametrize("convolve", [depthwise_conv2d, dynamic_depthwise_conv2d])
def test_an_unknown_padding_is_named(convolve):
    with pytest.raises(ValueError, match="`padding` must be 'valid', 'same' .* Received: padding='causal'"):
        convolve(np.ones((1, 5, 6, 3), "float32"), np.ones((1, 3, 3, 3), "float32"), padding="causal")


@pytest.mark.skipif(keras.config.backend() != "jax", reason="the others have kernels of their own")
@pytest.mark.parametrize("convolve", [depthwise_conv2d, dynamic_depthwise_conv2d])
def test_a_training_step_on_jax_keeps_no_zeros_around_the_map(convolve):
    import jax

    x = np.ones((2, 5, 7, 3), "float32")
    kernel = np.ones((3, 3, 3, 1) if convolve is depthwise_conv2d else (2, 3, 3, 3), "float32")
    _, gradient = jax.vjp(lambda x, kernel: convolve(x, kernel, padding="same"), x, kernel)
    assert sorted(leaf.size for leaf in jax.tree.leaves(gradient)) == [kernel.size, x.size]


@pytest.mark.skipif(keras.config.backend() == "torch", reason="XLA compiles for JAX and TensorFlow")
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("gpu", [True, False])
def test_one_tap_is_a_product_where_xla_compiles(gpu, data_format, monkeypatch):
    """Its gradients are summed in float32: in bfloat16 JAX' sum of 2,560 products would stop at 256."""
    if not gpu and keras.config.backend() == "tensorflow":
        pytest.skip("TensorFlow's XLA would take long for its gradient on a CPU.")
    monkeypatch.setattr(compiler, "_has_gpu", lambda: gpu)
    monkeypatch.setattr(ops, "depthwise_conv", None)
    monkeypatch.setattr(depthwise, "shifted_products", None)
    rng = np.random.default_rng(0)
    x, kernel = rng.random((4, 32, 20, 3)).astype("float32"), rng.random((1, 1, 3, 1)).astype("float32")
    bias, taken = np.float32([1, 2, 3]), x if data_format == "channels_last" else x.transpose(0, 3, 1, 2)

    def convolve(kernel):
        return depthwise_conv2d(
            ops.cast(taken, kernel.dtype),
            kernel,
            padding="same",
            data_format=data_format,
            bias=ops.cast(bias, kernel.dtype),
        )

    y, _ = _compiled_with_gradient(convolve, kernel, "float32")
    y = y if data_format == "channels_last" else y.transpose(0, 2, 3, 1)
    assert relative_error(y, x * kernel[0, 0, :, 0] + bias) < 1e-6
    _, gradient = _compiled_with_gradient(convolve, kernel, "bfloat16")
    assert relative_error(gradient[0, 0, :, 0], x.sum((0, 1, 2))) < 2**-8


def _compiled_with_gradient(function, x, dtype):
    """`function(x)` and the gradient of its sum, as XLA compiles them."""
    if keras.config.backend() == "jax":
        import jax

        x = ops.cast(x, dtype)
        y, gradient = jax.jit(lambda x: (function(x), jax.grad(lambda x: ops.sum(function(x)))(x)))(x)
    else:
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def compute(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = function(x)
            return y, tape.gradient(y, x)

        y, gradient = compute(tf.constant(x, dtype))
    return [to_numpy(ops.cast(each, "float32")) for each in (y, gradient)]
