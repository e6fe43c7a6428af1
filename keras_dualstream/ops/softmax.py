"""Softmax along an axis that is not the last."""

from keras import ops

from keras_dualstream.ops.compiler import exporting
from keras_dualstream.ops.compiler import in_tensorflow_graph
from keras_dualstream.ops.half_precision import is_full_precision


def softmax(x, axis):
    """`exp(x) / Σ exp(x)` along an axis that is not the last.

    TensorFlow's kernel knows the last axis alone: for another one `ops.softmax` transposes twice, with 24 nodes of a
    graph around it. Its operations one by one are 8 (TransXNet-T predicts in 352 instead of 366 ms, and its first call
    takes 7.0 instead of 8.1 s). Exported graphs have the one operation, which LiteRT has for integers too.

    Args:
        x: float tensor.
        axis: int.

    Returns:
        Tensor of the shape and dtype of `x`.
    """
    if not in_tensorflow_graph() or not is_full_precision(x.dtype) or exporting():
        return ops.softmax(x, axis)
    powers = ops.exp(x - ops.stop_gradient(ops.max(x, axis, keepdims=True)))
    return powers / ops.sum(powers, axis, keepdims=True)
