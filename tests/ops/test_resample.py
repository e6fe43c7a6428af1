"""Bicubic and bilinear resizing and adaptive pooling are PyTorch's."""

import keras
import numpy as np
import pytest
from helpers import relative_error

from keras_dualstream.ops.resample import adaptive_average_pool
from keras_dualstream.ops.resample import bicubic_taps
from keras_dualstream.ops.resample import resize_bicubic
from keras_dualstream.ops.resample import resize_bilinear
from keras_dualstream.ops.resample import resize_nearest


def resize_by_torch(x, height, width):
    import torch

    image = torch.tensor(x.transpose(2, 0, 1)[None])
    resized = torch.nn.functional.interpolate(image, size=(height, width), mode="bicubic", align_corners=False)
    return resized[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", [(8, 8), (9, 11), (1, 1), (2, 17), (5, 3)])
def test_equals_pytorch(size):
    x = np.random.default_rng(0).standard_normal((8, 8, 3)).astype("float32")
    assert relative_error(resize_bicubic(keras.ops.convert_to_tensor(x), *size), resize_by_torch(x, *size)) < 1e-6


@pytest.mark.parametrize("size", [(9, 11), (3, 5)])
def test_float64_equals_pytorch(size, float64):
    x = np.random.default_rng(0).standard_normal((8, 8, 3))
    found = resize_bicubic(keras.ops.convert_to_tensor(x, dtype=float64), *size)
    assert relative_error(found, resize_by_torch(x, *size)) < 1e-13


def test_the_same_size_changes_nothing():
    x = np.random.default_rng(0).standard_normal((8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(resize_bicubic(keras.ops.convert_to_tensor(x), 8, 8)), x)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only TensorFlow has sizes unknown while tracing")
def test_sizes_unknown_while_tracing_give_the_same():
    import tensorflow as tf

    x = np.random.default_rng(0).standard_normal((8, 8, 3)).astype("float32")
    signature = [tf.TensorSpec((), "int32"), tf.TensorSpec((), "int32")]
    traced = tf.function(lambda height, width: resize_bicubic(tf.constant(x), height, width), input_signature=signature)
    for size in [(9, 11), (1, 4), (8, 8)]:
        assert relative_error(traced(*size), resize_by_torch(x, *size)) < 1e-6


def bilinear_by_torch(x, height, width):
    import torch

    maps = torch.tensor(x.transpose(0, 3, 1, 2))
    resized = torch.nn.functional.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("size", [(12, 16), (3, 2), (9, 19), (1, 1), (40, 5)])
def test_bilinear_equals_pytorch(size):
    x = np.random.default_rng(0).standard_normal((2, 12, 16, 3)).astype("float32")
    found = resize_bilinear(keras.ops.convert_to_tensor(x), *size)
    assert relative_error(found, bilinear_by_torch(x, *size)) < 1e-6


@pytest.mark.parametrize("size", [(9, 11), (3, 5)])
def test_bilinear_in_float64_equals_pytorch(size, float64):
    x = np.random.default_rng(0).standard_normal((2, 8, 7, 3))
    found = resize_bilinear(keras.ops.convert_to_tensor(x, dtype=float64), *size)
    assert relative_error(found, bilinear_by_torch(x, *size)) < 1e-13


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only TensorFlow has sizes unknown while tracing")
def test_bilinear_of_a_size_unknown_while_tracing_is_exact_on_long_axes_too():
    import tensorflow as tf

    signature = [tf.TensorSpec((None, None, None, 3), "float32"), *[tf.TensorSpec((), "int32")] * 2]
    traced = tf.function(resize_bilinear, input_signature=signature)
    for old, new in [((9, 11), (4, 2)), ((1, 7), (5, 7)), ((2, 3001), (3, 1499)), ((2, 999), (1, 2999))]:
        x = np.random.default_rng(0).standard_normal((2, *old, 3)).astype("float32")
        # PyTorch's own float32 positions are what loses digits here.
        assert relative_error(traced(x, *new), bilinear_by_torch(x.astype("float64"), *new)) < 5e-7


def nearest_by_torch(x, size):
    import torch

    maps = torch.nn.functional.interpolate(torch.tensor(x.transpose(0, 3, 1, 2)), size=size, mode="nearest")
    return maps.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("size", [(6, 10), (7, 11), (5, 9), (3, 5), (2, 3), (3, 20)])
def test_nearest_equals_pytorch(size):
    """Whole multiples, one more and one fewer than twice, the same size, and fewer positions than before."""
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 3)).astype("float32")
    found = keras.ops.convert_to_numpy(resize_nearest(keras.ops.convert_to_tensor(x), *size))
    np.testing.assert_array_equal(found, nearest_by_torch(x, size))


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only TensorFlow has sizes unknown while tracing")
def test_nearest_of_a_size_unknown_while_tracing_gives_the_same():
    import tensorflow as tf

    signature = [tf.TensorSpec((None, None, None, 3), "float32"), *[tf.TensorSpec((), "int32")] * 2]
    traced = tf.function(resize_nearest, input_signature=signature)
    for old, new in [((3, 5), (7, 9)), ((13, 21), (26, 43)), ((1, 4), (3, 2))]:
        x = np.random.default_rng(0).standard_normal((2, *old, 3)).astype("float32")
        np.testing.assert_array_equal(traced(x, *new), nearest_by_torch(x, new))


def pool_by_torch(x, height, width):
    import torch

    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(x.transpose(0, 3, 1, 2)), (height, width))
    return pooled.permute(0, 2, 3, 1).numpy()


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only TensorFlow has sizes unknown while tracing")
def test_a_long_axis_unknown_while_tracing_does_not_overflow():
    import tensorflow as tf

    traced = tf.function(lambda new: bicubic_taps(9216, new, "float64"), input_signature=[tf.TensorSpec((), "int32")])
    for found, expected in zip(traced(120000), bicubic_taps(9216, 120000, "float64"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(14, 21), (9, 11), (7, 7), (1, 1), (3, 20), (5, 30)])
@pytest.mark.parametrize("grid", [(7, 7), (3, 5), (1, 1)])
def test_adaptive_pooling_equals_pytorch(size, grid):
    """Whole multiples, overlapping cells, the same size, and maps smaller than the grid."""
    x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype("float32")
    found = adaptive_average_pool(keras.ops.convert_to_tensor(x), *grid)
    assert relative_error(found, pool_by_torch(x, *grid)) < 1e-6


def test_adaptive_pooling_in_float64_equals_pytorch(float64):
    x = np.random.default_rng(0).standard_normal((2, 9, 11, 3))
    found = adaptive_average_pool(keras.ops.convert_to_tensor(x, dtype=float64), 7, 3)
    assert relative_error(found, pool_by_torch(x, 7, 3)) < 1e-14


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only TensorFlow has sizes unknown while tracing")
def test_adaptive_pooling_of_a_size_unknown_while_tracing_gives_the_same():
    import tensorflow as tf

    signature = [tf.TensorSpec((None, None, None, 3), "float32")]
    traced = tf.function(lambda x: adaptive_average_pool(x, 7, 7), input_signature=signature)
    for size in [(9, 11), (3, 20), (14, 7)]:
        x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype("float32")
        assert relative_error(traced(x), pool_by_torch(x, 7, 7)) < 1e-6
