"""Blocks as programs of their own on JAX, on a CPU."""

import contextlib
import numbers

import keras

from keras_dualstream.layers.block import Block
from keras_dualstream.layers.drop_path import DropPath
from keras_dualstream.layers.nested_call import get_global_attribute
from keras_dualstream.ops.compiler import converting_jax_to_tensorflow
from keras_dualstream.ops.compiler import exporting
from keras_dualstream.ops.compiler import jax_on_cpu
from keras_dualstream.ops.half_precision import is_full_precision
from keras_dualstream.ops.jax_program import compiled_as_a_whole
from keras_dualstream.ops.jax_recomputation import keeping_little

# The attributes in which layers that share a program may differ: names, rates, what Keras notes or makes for each.
OF_ONE = {"name", "_path", "_parent_path", "drop_path_rate", "seed", "_called", "build", "quantize"}
OF_ONE_DROP_PATH = OF_ONE | {"rate", "seed_generator"}
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
    (`keeping_little`); where some of them drop nothing, as a model's first block,
    once for these and once for the others.

    Blocks are called as ever where something is unusual: in half precision,
    quantised, with `remat`, with metrics, or for an exporter.

    Args:
        operation_fn: function from a layer to what calls it, as Keras' walks through graphs have it.
    """

    def __init__(self, operation_fn):
        self.operation_fn = operation_fn
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
        symbolic = any(isinstance(x, keras.KerasTensor) for x in args)
        if self.scope is None or kwargs or symbolic or not _is_plain(layer):
            return self.operation_fn(layer)(*args, **kwargs)
        weights = _weights(layer)
        values = [self.scope.get_current_value(weight) for weight in weights]
        if any(value is None for value in values):
            return self.operation_fn(layer)(*args)
        signature = _signature(layer)
        if signature not in self.programs:
            self.programs[signature] = _program(layer, self.operation_fn(layer), self.scope)
        training = _is_for_training(self.operation_fn)
        factors = [part.draw(args[0], training=training) for part in _drop_paths(layer)]
        result, changes, losses = self.programs[signature](values, factors, args)
        for weight, value in zip(weights, changes, strict=True):
            if value is not None:
                weight.assign(value)
        for loss in losses:
            layer.add_loss(loss)
        return result


def _scope_of_a_program():
    """The scope that holds the variables' values where JAX compiles a whole model for a CPU, `None` elsewhere."""
    if get_global_attribute is None or not jax_on_cpu():
        return None
    scope = get_global_attribute("stateless_scope")
    if scope is None or not compiled_as_a_whole() or exporting() or converting_jax_to_tensorflow():
        return None
    return scope


def _is_for_training(operation_fn):
    """What a layer would have for `training`: what the walk gives it, otherwise that of the call around."""
    given = operation_fn(_Mode())()
    return getattr(get_global_attribute("current_call_ctx"), "training", None) if given is None else given


class _Mode:
    """In place of a layer, tells what it would be given for `training`."""

    _call_context_args = {"training"}

    def __call__(self, training=None):
        return training


def _is_plain(layer):
    """Whether a layer is a block whose program nothing but its arguments and variables could change."""
    if not isinstance(layer, Block) or layer.metrics:
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
    """The function of a block of any values of its weights and any factors of its stochastic depth."""
    weights = _weights(block)

    def compute(values, factors, args):
        scope = keras.StatelessScope(collect_losses=True)
        # Not as an argument, by which Keras would cast what a model around is autocasting.
        scope.state_mapping.update(outer_scope.state_mapping)
        for weight, value in zip(weights, values, strict=True):
            scope.add_update((weight, value))
        with scope, contextlib.ExitStack() as stack:
            for part, drawn in zip(_drop_paths(block), factors, strict=True):
                stack.enter_context(part.giving(drawn))
            result = call(*args)
        after = [scope.get_current_value(weight) for weight in weights]
        return result, [new if new is not old else None for new, old in zip(after, values, strict=True)], scope.losses

    return keeping_little(compute)


def _drop_paths(layer):
    return [part for part in layer._flatten_layers() if isinstance(part, DropPath)]


def _weights(layer):
    """A block's variables but for the seeds of its stochastic depth, which is drawn outside of its program."""
    seeds = {id(part.seed_generator.state) for part in _drop_paths(layer) if part.seed_generator is not None}
    return [variable for variable in layer.variables if id(variable) not in seeds]


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
    of_one = OF_ONE_DROP_PATH if isinstance(layer, DropPath) else OF_ONE
    found = []
    for key, value in sorted(vars(layer).items()):
        if key not in of_one:
            if isinstance(value, numbers.Number | str | tuple | None):
                found.append((key, value))
            elif callable(value) and not isinstance(value, NOT_CALLED):
                found.append((key, id(value)))
    return found
