"""TransXNet as a model: its options, its position bias, its mistakes."""

import keras
import numpy as np
import pytest
from helpers import predict
from helpers import randomize
from helpers import relative_error
from helpers import tiny_transxnet
from helpers import to_numpy

from keras_dualstream.conversion import load_checkpoint
from keras_dualstream.conversion import to_torch_state_dict


def values(model):
    return {weight.path: to_numpy(weight) for weight in model.weights if "seed" not in weight.path}


# JAX compiles this step for a minute; Dual-ViT's and DS-Net's are in every run.
@pytest.mark.slow
def test_half_precision_trains_and_predicts_like_float32():
    labels = np.arange(20) % 5
    rng = np.random.default_rng(0)
    x = (40 * labels[:, None, None, None] + 20 * rng.random((20, 64, 64, 3))).astype("float32")
    model = tiny_transxnet((64, 64, 3), dtype="mixed_bfloat16")
    model.compile(keras.optimizers.SGD(0.02), "sparse_categorical_crossentropy")
    losses = model.fit(x, labels, batch_size=10, epochs=10, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    single = tiny_transxnet((64, 64, 3))
    single.set_weights(list(values(model).values()))
    assert relative_error(predict(model, x), predict(single, x)) < 0.02


OPTIONS = {
    "local_operator": ("depthwise_conv", "id_conv"),
    "attention_ratio": (0.25, 0.5),
    "overlapping_reduction": (False, True),
    "token_enhancer": (False, True),
    "position_encoding": (False, True),
    "position_bias": (False, True),
    "pretraining_size": ((64, 32), 48),
    "scales": ((1, 3), (1, 3, 5, 7)),
    "kernel_size": (5, 3),
    "sr_ratios": ((4, 2, 2, 1), (8, 4, 2, 1)),
    "num_groups": ((2, 2, 3, 4), (2, 2, 2, 2)),
    "mlp_ratios": ((3, 2, 2, 2), (2, 2, 2, 2)),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_the_weights_and_survives_the_config(option):
    value, default = OPTIONS[option]
    model = tiny_transxnet(**{option: value})
    assert model.count_params() != tiny_transxnet(**{option: default}).count_params()
    restored = type(model).from_config(model.get_config())
    assert restored.get_config() == model.get_config()
    assert [weight.shape for weight in restored.weights] == [weight.shape for weight in model.weights]


def test_without_position_bias_a_checkpoint_and_a_weights_file_go_without_it(tmp_path):
    full = randomize(tiny_transxnet(), seed=1)
    path = str(tmp_path / "a.weights.h5")
    full.save_weights(path)
    expected = {name: value for name, value in values(full).items() if "position_bias" not in name}
    assert len(expected) == len(values(full)) - 4
    converted, loaded = tiny_transxnet(position_bias=False), tiny_transxnet(position_bias=False, weights=path)
    load_checkpoint(converted, to_torch_state_dict(full))
    for found in (values(converted), values(loaded)):
        assert found.keys() == expected.keys()
        assert all((found[name] == expected[name]).all() for name in expected)


def test_an_ablation_has_no_checkpoint():
    model = tiny_transxnet(local_operator="dy_conv")
    with pytest.raises(ValueError, match="Checkpoints have IDConv.* Received: {'local_operator': 'dy_conv'}"):
        to_torch_state_dict(model)


MISTAKES = {
    "stages": (
        dict(num_groups=(2, 2)),
        r"`num_groups` must have one value for each of the 4 stages. Received: \(2, 2\)",
    ),
    "size": (dict(pretraining_size=0), "`pretraining_size` must be a positive int or a pair of them. Received: .*0"),
    "rate": (dict(drop_path_rate=1), r"`drop_path_rate` must be in \[0, 1\). Received: drop_path_rate=1"),
    "ratio": (dict(sr_ratios=(0, 4, 2, 1)), r"`sr_ratios` must be positive. Received: \(0, 4, 2, 1\)"),
    "heads": (dict(num_heads=(3, 2, 3, 4)), "`num_heads` must divide the channels of the input. Received: num_heads=3"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    options, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        tiny_transxnet(**options)
