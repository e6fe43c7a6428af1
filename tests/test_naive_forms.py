"""The benchmark's naive forms are the models by Keras' own depthwise convolutions."""

import pytest
from helpers import compiled
from helpers import images
from helpers import randomize
from helpers import relative_error
from helpers import tiny_dfvt
from helpers import tiny_dsnet
from helpers import tiny_transxnet
from helpers import to_numpy

from benchmarks.speed.models import naive_forms
from keras_dualstream.layers import depthwise_conv
from keras_dualstream.layers import id_conv
from keras_dualstream.layers import ms_ffn


@pytest.mark.parametrize("tiny", [tiny_dfvt, tiny_dsnet, tiny_transxnet])
def test_naive_forms_compute_the_same_without_ours(tiny, monkeypatch):
    model = tiny()
    randomize(model)
    x = images(2, *model.input_shape[1:])
    expected = to_numpy(compiled(model)(x))
    ours = [(depthwise_conv, "depthwise_conv2d"), (id_conv, "dynamic_depthwise_conv2d")]
    for module, name in [*ours, (ms_ffn, "depthwise_conv2d_of_parts")]:
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("One of ours was called."))
    with naive_forms():
        assert relative_error(compiled(model)(x), expected) < 1e-5
