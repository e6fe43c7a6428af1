"""Parts of layers that a backward pass on TensorFlow computes again instead of keeping what they give."""

import keras

from keras_dualstream.ops.compiler import exporting
from keras_dualstream.ops.compiler import in_tensorflow_graph
from keras_dualstream.ops.half_precision import is_full_precision
from keras_dualstream.ops.tensorflow_recomputation import tensorflow_recomputed


def recomputes(x, layers):
    """Whether `recomputed` takes them: in a graph that TensorFlow runs itself, in full precision.

    XLA would see that it computes twice, and not do it.

    Args:
        x: float tensor.
        layers: list of layers.
    """
    plain = all(layer.quantization_mode is None and layer.activity_regularizer is None for layer in layers)
    return is_full_precision(x.dtype) and plain and in_tensorflow_graph() and not exporting()


def adds_losses(layer):
    """Whether what some layer inside of a layer gives is regularised: a loss that cannot leave a loop of JAX.

    Args:
        layer: the layer around, whose own losses Keras adds after its call.
    """
    return any(part.activity_regularizer is not None for part in layer._flatten_layers(include_self=False))


def recomputed(function, layers, *tensors):
    """`function(*tensors)`, whose backward pass keeps no intermediate results.

    Args:
        function: function of float tensors to one, or to several, through the first of which gradients go. It draws
            nothing, adds no loss and changes no variable.
        layers: list of all layers with variables that it calls.
        *tensors: float tensors.

    Returns:
        What `function` returns.
    """
    variables = [variable for layer in layers for variable in layer.variables]

    def compute(*given):
        with keras.StatelessScope(zip(variables, given[len(tensors) :], strict=True)):
            return function(*given[: len(tensors)])

    return tensorflow_recomputed(compute, *tensors, *(variable.value for variable in variables))
