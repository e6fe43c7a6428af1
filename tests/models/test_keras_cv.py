"""A backbone of the package inside KerasCV's RetinaNet."""

import keras
import numpy as np
import pytest
from helpers import RUN_EAGERLY
from helpers import TINY_DSNET
from helpers import slow_to_compile
from helpers import to_numpy

import keras_dualstream

keras_cv = pytest.importorskip("keras_cv")


@slow_to_compile
def test_a_training_step_moves_every_weight_that_the_pyramid_sees():
    backbone = keras_dualstream.DSNetBackbone(image_shape=(64, 64, 3), **TINY_DSNET)
    model = keras_cv.models.RetinaNet(backbone, num_classes=3, bounding_box_format="xyxy")
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3), box_loss="smoothl1", classification_loss="focal", run_eagerly=RUN_EAGERLY
    )
    before = {weight.path: to_numpy(weight).copy() for weight in model.trainable_weights}
    assert any(path.startswith("stage1_block1") for path in before)
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    boxes = np.array([[[4, 4, 36, 36]], [[16, 12, 48, 60]]], "float32")
    history = model.fit(images, {"boxes": boxes, "classes": np.array([[0], [2]], "float32")}, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["box_loss"][0] > 0
    for weight in model.trainable_weights:
        assert np.abs(to_numpy(weight) - before[weight.path]).max() > 0, weight.path


def test_the_levels_are_named_after_their_layers():
    backbone = keras_dualstream.DSNetBackbone(image_shape=(64, 64, 3), **TINY_DSNET)
    assert backbone.pyramid_level_inputs == {
        level: f"stage{stage}_block1" for stage, level in enumerate(("P2", "P3", "P4", "P5"), 1)
    }
    for level, name in backbone.pyramid_level_inputs.items():
        assert backbone.get_layer(name).output is backbone.pyramid_outputs[level]
