"""Bicubic resizing is PyTorch's."""

import keras
import numpy as np
import pytest
from helpers import relative_error

from keras_dualstream.ops.resample import resize_bicubic


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
