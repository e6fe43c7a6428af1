"""Arrays that are computed once."""

import keras
import numpy as np
import pytest

from keras_dualstream.ops.constants import remembered
from keras_dualstream.ops.resample import resize_bicubic
from keras_dualstream.ops.resample import resize_bilinear


def test_computes_once_for_each_argument():
    asked = []

    @remembered
    def zeros(*sizes):
        asked.append(sizes)
        return np.zeros(sizes)

    assert zeros(2, 3) is zeros(2, 3)
    assert zeros(3, 2).shape == (3, 2)
    assert asked == [(2, 3), (3, 2)]


@pytest.mark.skipif(keras.config.backend() != "torch", reason="it is PyTorch's compiler that sees what remembers")
@pytest.mark.parametrize(("resize", "shape"), [(resize_bilinear, (1, 4, 5, 3)), (resize_bicubic, (4, 5, 3))])
def test_pytorch_compiles_what_reads_them(resize, shape, recwarn):
    import torch

    x = torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype("float32"))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(resize, backend="eager")(x, 8, 10), resize(x, 8, 10))
    assert not [warning for warning in recwarn if "lru_cache" in str(warning.message)]
