"""Functions that a graph of TensorFlow shares."""

import keras
import numpy as np
import pytest

from keras_dualstream.ops.tensorflow_program import tensorflow_program

pytestmark = pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="They are TensorFlow's.")


def test_a_graph_holds_a_function_once_and_it_knows_shapes():
    import tensorflow as tf

    program = tensorflow_program(lambda weights, x: [x @ weights[0] + weights[1], None])
    weights = [
        [tf.Variable(np.full((3, 3), i, "float32")), tf.Variable(np.arange(3.0, dtype="float32"))] for i in (1, 2)
    ]
    outer = tf.function(lambda x: program(weights[1], program(weights[0], x)[0])[0])
    np.testing.assert_allclose(outer(tf.ones((2, 3))), [[24, 25, 26]] * 2)
    graph = outer.get_concrete_function(tf.TensorSpec((2, 3))).graph.as_graph_def()
    calls = [node for node in graph.node if node.op.endswith("PartitionedCall")]
    (function,) = graph.library.function
    assert [call.attr["f"].func.name for call in calls] == [function.signature.name] * 2
    # Or TensorFlow would write it out at each call.
    assert function.attr["_noinline"].b
    shapes = [
        [size.size for size in node.attr["shape"].shape.dim] for node in function.node_def if node.op == "EnsureShape"
    ]
    assert sorted(shapes) == [[2, 3], [3], [3, 3]]


def test_a_function_is_traced_as_the_graph_around_is_without_rewriting_its_code():
    import tensorflow as tf

    program = tensorflow_program(lambda x: x if tf.reduce_sum(x) > 0 else -x)
    with pytest.raises(tf.errors.OperatorNotAllowedInGraphError):
        program(tf.ones(2))
