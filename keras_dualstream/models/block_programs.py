"""Blocks as programs of their own on JAX, on a CPU."""

import contextlib
import numbers

import keras
import numpy as np

from keras_dualstream.layers.block import Block
from keras_dualstream.layers.drop_path import DropPath
from keras_dualstream.layers.nested_call import get_global_attribute
from keras_dualstream.ops.compiler import converting_jax_to_tensorflow
from keras_dualstream.ops.compiler import exporting
from keras_dualstream.ops.compiler import jax_on_cpu
from keras_dualstream.ops.half_precision import is_full_precision
from keras_dualstream.ops.jax_program import apart
from keras_dualstream.ops.jax_program import compiled_as_a_whole
from keras_dualstream.ops.jax_recomputation import keeping_little

# The attributes in which layers that share a program may differ: names, rates, what Keras notes or makes for each.
OF_ONE = {"name", "_path", "_parent_path", "drop_path_rate", "seed", "_called", "build", "quantize"}
# In place of a seed where the rate is zero and nothing is dropped, whatever is drawn.
NO_SEED = np.zeros(2, "uint32")
# Objects that say nothing of what a layer computes from its weights, or are looked at by themselves.
NOT_CALLED = (
    keras.Layer,
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
)


class BlockPrograms:
    """Calls the layers of a graph, and its blocks as programs that alike ones share.

    Where JAX compiles a model for a CPU, it would trace every layer anew, and
    XLA compile it anew and keep for the backward pass what it likes. The program of
    blocks alike is traced once in a walk, and once for gradients, and keeps little
    (`keeping_little`).

    Blocks are called as ever where something is unusual: in half precision,
    quantised, with `remat`, with metrics, or for an exporter.

    Args:
        operation_fn: function from a layer to what calls it, as Keras' walks through graphs have it.
        layers: list of the graph's layers.
    """

    def __init__(self, operation_fn, layers):
        self.operation_fn = operation_fn
        self.layers = layers
        self.programs = {}
        self.scope = _scope_of_a_program()

    def call(self, layer, args, kwargs):
        """Calls a layer.

        Args:
            layer: a layer of the graph.
            args: tuple of its arguments.
            kwargs: dict of its arguments.

        Returns:
            What the layer returns.
        """
        if self.scope is None or kwargs or not _is_plain(layer):
            return self.operation_fn(layer)(*args, **kwargs)
        variables = _variables(layer)
        values = [NO_SEED if variable is None else self.scope.get_current_value(variable) for variable in variables]
        if any(value is None for value in values):
            return self.operation_fn(layer)(*args)
        signature = _signature(layer)
        if signature not in self.programs:
            drawing = self._drawing_one(layer, signature)
            self.programs[signature] = _program(drawing, self.operation_fn(drawing), self.scope)
        rates = [part.rate_and_factor() for part in _drop_paths(layer)]
        result, changes, losses = self.programs[signature](values, rates, args)
        for variable, value in zip(variables, changes, strict=True):
            if variable is not None and value is not None:
                variable.assign(value)
        for loss in losses:
            layer.add_loss(loss)
        return result

    def _drawing_one(self, layer, signature):
        """A block alike that draws: with a rate of zero, as of a model's first block, `layer` itself does not."""
        alike = (other for other in self.layers if _is_plain(other) and _signature(other) == signature)
        return layer if _draws(layer) else next(filter(_draws, alike), layer)


def _scope_of_a_program():
    """The scope that holds the variables' values where JAX compiles a whole model for a CPU, `None` elsewhere."""
    if get_global_attribute is None or not jax_on_cpu():
        return None
    scope = get_global_attribute("stateless_scope")
    if scope is None or not compiled_as_a_whole() or exporting() or converting_jax_to_tensorflow():
        return None
    return scope


def _is_plain(layer):
    """Whether a layer is a block whose program nothing but its arguments and variables could change."""
    if not isinstance(layer, Block) or layer.metrics or len({_draws(part) for part in _drop_paths(layer)}) > 1:
        return False
    return all(
        is_full_precision(part.compute_dtype)
        and getattr(part, "quantization_mode", None) is None
        # What a program keeps, it keeps of what `keras.remat` would compute again, too.
        and getattr(part, "_remat_mode", None) is None
        and not getattr(part, "remat", False)
        for part in layer._flatten_layers()
    )


def _program(block, call, outer_scope):
    """The function of a block of any values of its variables and any rates of its stochastic depth."""
    variables = _variables(block)

    def compute(values, rates, args):
        scope = keras.StatelessScope(collect_losses=True)
        # Not as an argument, by which Keras would cast what a model around is autocasting.
        scope.state_mapping.update(outer_scope.state_mapping)
        for variable, value in zip(variables, values, strict=True):
            if variable is not None:
                scope.add_update((variable, value))
        with scope, contextlib.ExitStack() as stack:
            for part, (rate, factor) in zip(_drop_paths(block), rates, strict=True):
                if _draws(part):
                    stack.enter_context(part.drawing_with(rate, factor))
            result = call(*args)
        after = [None if variable is None else scope.get_current_value(variable) for variable in variables]
        return result, [new if new is not old else None for new, old in zip(after, values, strict=True)], scope.losses

    return apart(keeping_little(compute))


def _drop_paths(layer):
    return [part for part in layer._flatten_layers() if isinstance(part, DropPath)]


def _draws(layer):
    """Whether stochastic depth has a seed in a layer, as it does not where the rate is zero."""
    return any(part.seed_generator is not None for part in _drop_paths(layer))


def _variables(layer):
    """A block's variables: its weights, then the seed of each of its DropPaths, `None` for one that has none."""
    return _weights(layer) + _seeds(layer)


def _weights(layer):
    seeds = set(map(id, _seeds(layer)))
    return [variable for variable in layer.variables if id(variable) not in seeds]


def _seeds(layer):
    return [part.seed_generator and part.seed_generator.state for part in _drop_paths(layer)]


def _signature(layer):
    """Everything by which the programs of two blocks could differ, beside names, values and rates.

    Not their configs, for which Keras imports TensorFlow.
    """
    parts = [
        (type(part), part.compute_dtype, part.variable_dtype, _attributes(part)) for part in layer._flatten_layers()
    ]
    weights = [(weight.shape, weight.dtype, weight.trainable) for weight in _weights(layer)]
    return repr((parts, weights))


def _attributes(layer):
    """What a layer's attributes say, each function by its identity."""
    of_one = OF_ONE | {"rate", "seed_generator"} if isinstance(layer, DropPath) else OF_ONE
    found = []
    for key, value in sorted(vars(layer).items()):
        if key not in of_one:
            if isinstance(value, numbers.Number | str | tuple | None):
                found.append((key, value))
            elif callable(value) and not isinstance(value, NOT_CALLED):
                found.append((key, id(value)))
    return found
