"""Functions that a graph of TensorFlow calls instead of holding at each place what they compute."""


def forget_eager_kernels():
    """Has TensorFlow forget the kernels of what it has run operation by operation, as `keras.utils.clear_session` does.

    It keeps one for every shape and name of those that built a model: without them TransXNet-S predicts in 0.44
    instead of 0.50 to 0.54 GB. What is run again gets its kernel again.
    """
    from tensorflow.python.eager import context

    context.context().clear_kernel_cache()


def tensorflow_program(function):
    """`function` as one function of a graph, which its calls share.

    Args:
        function: function of tensors, variables, and trees of these and `None`, to trees of tensors and `None`.

    Returns:
        The function of the same results.
    """
    import tensorflow as tf

    def known(x):
        # Of a function's arguments TensorFlow knows no shapes when it looks for what it can join: without them
        # products and convolutions leave their biases to operations of their own, and DSNetT predicts 4% slower.
        return tf.ensure_shape(tf.convert_to_tensor(x), x.shape) if isinstance(x, tf.Tensor | tf.Variable) else x

    def compute(*args):
        return function(*tf.nest.map_structure(known, args))

    return tf.function(compute, autograph=False, experimental_attributes={"_noinline": True})
