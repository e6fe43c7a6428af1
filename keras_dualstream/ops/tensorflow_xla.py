"""Parts of TensorFlow's graph that XLA compiles: one loop where TensorFlow runs one operation after the other.

They are parts of graphs that TensorFlow runs on a CPU itself: not of exported ones, which other programs run, and not
where XLA compiles everything or operations run one by one.
"""

import functools

from keras_dualstream.ops.compiler import exporting
from keras_dualstream.ops.compiler import in_tensorflow_graph
from keras_dualstream.ops.compiler import tensorflow_on_cpu


def takes_xla(*tensors):
    """Whether `in_xla` takes these tensors: float32 of known sizes but for the batch, in a graph for a CPU."""
    if not tensorflow_on_cpu():
        return False
    import tensorflow as tf

    # XLA compiles for every size it meets.
    suitable = all(
        tf.is_tensor(x) and x.dtype == tf.float32 and x.shape.rank and all(size is not None for size in x.shape[1:])
        for x in tensors
    )
    return suitable and in_tensorflow_graph() and not exporting() and _has_compiler()


def in_xla(function, *tensors):
    """`function(*tensors)`, compiled.

    Args:
        function: function of tensors that is always the same object, as it is compiled once for each shape.
        *tensors: tensors that `takes_xla` says yes to.

    Returns:
        What `function` returns.
    """
    return _compiled(function, tuple((tuple(x.shape), x.dtype) for x in tensors))(*tensors)


@functools.cache
def _compiled(function, shapes_and_dtypes):
    import tensorflow as tf

    # A function for each shape: TensorFlow warns of one that it traces for many.
    signature = [tf.TensorSpec(shape, dtype) for shape, dtype in shapes_and_dtypes]
    return tf.function(function, input_signature=signature, autograph=False, jit_compile=True)


@functools.cache
def _has_compiler():
    """Whether this TensorFlow was built with XLA for CPUs."""
    import tensorflow as tf

    try:
        with tf.init_scope(), tf.device("CPU"):
            return float(tf.function(lambda x: x + 1.0, jit_compile=True)(tf.constant(1.0))) == 2.0
    except (tf.errors.OpError, TypeError):
        return False
