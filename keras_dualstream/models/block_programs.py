"""Blocks as programs of their own on JAX."""

import contextlib
import types

import keras

from keras_dualstream.layers.block import Block
from keras_dualstream.layers.drop_path import DropPath
from keras_dualstream.layers.nested_call import get_global_attribute
from keras_dualstream.ops.compiler import exporting
from keras_dualstream.ops.jax_program import apart
from keras_dualstream.ops.jax_recomputation import keeping_little
from keras_dualstream.ops.pieces import traced_by_jax

# The attributes in which layers that share a program may differ, and two functions that Keras makes for each layer.
OF_ONE = {"name", "_path", "_parent_path", "drop_path_rate", "seed", "build", "quantize"}
PLAIN = bool | int | float | str | tuple | None | types.FunctionType


class BlockPrograms:
    """Calls the layers of a graph, and blocks on JAX as programs that alike ones share.

    JAX traces every layer anew, and XLA compiles it anew and keeps for the
    backward pass what it likes. A block's program is traced and compiled once,
    and keeps little (`keeping_little`).

    Args:
        operation_fn: function from a layer to what calls it, as Keras' walks through graphs have it.
    """

    def __init__(self, operation_fn):
        self.operation_fn = operation_fn
        self.programs = {}
        self.exporting = None

    def call(self, layer, args, kwargs):
        """The layer's result."""
        values = self._values(layer, args, kwargs)
        if values is None:
            return self.operation_fn(layer)(*args, **kwargs)
        signature = _signature(layer)
        if signature not in self.programs:
            self.programs[signature] = _program(layer, self.operation_fn(layer))
        rates = [part.rate_and_factor() for part in _drop_paths(layer)]
        result, changes = self.programs[signature](values, rates, args)
        for variable, value in zip(layer.variables, changes, strict=True):
            if value is not None:
                variable.assign(value)
        return result

    def _values(self, layer, args, kwargs):
        """The values of a layer's variables where it can be a program: JAX traces them, and nothing is unusual."""
        if not isinstance(layer, Block) or kwargs or get_global_attribute is None:
            return None
        scope = get_global_attribute("stateless_scope")
        if scope is None or not any(map(traced_by_jax, keras.tree.flatten(args))):
            return None
        if any(getattr(part, "activity_regularizer", None) is not None for part in layer._flatten_layers()):
            return None
        self.exporting = exporting() if self.exporting is None else self.exporting
        values = [scope.get_current_value(variable) for variable in layer.variables]
        return None if self.exporting or any(value is None for value in values) else values


def _program(block, call):
    """The function of a block of any values of its variables and any rates of its stochastic depth."""

    def compute(values, rates, args):
        scope = keras.StatelessScope(state_mapping=list(zip(block.variables, values, strict=True)))
        with scope, contextlib.ExitStack() as stack:
            for part, (rate, factor) in zip(_drop_paths(block), rates, strict=True):
                stack.enter_context(part.drawing_with(rate, factor))
            result = call(*args)
        after = map(scope.get_current_value, block.variables)
        return result, [new if new is not old else None for new, old in zip(after, values, strict=True)]

    return apart(keeping_little(compute))


def _drop_paths(layer):
    return [part for part in layer._flatten_layers() if isinstance(part, DropPath) and part.seed_generator is not None]


def _signature(layer):
    """Everything by which the programs of two blocks could differ, beside names, values and rates.

    Not their configs, for which Keras imports TensorFlow.
    """
    parts = [(type(part), part.dtype_policy, _plain_attributes(part)) for part in layer._flatten_layers()]
    variables = [(variable.shape, variable.dtype, variable.trainable) for variable in layer.variables]
    return repr((parts, variables))


def _plain_attributes(layer):
    of_one = OF_ONE | {"rate"} if isinstance(layer, DropPath) else OF_ONE
    return [(key, x) for key, x in sorted(vars(layer).items()) if key not in of_one and isinstance(x, PLAIN)]
