"""Blocks as programs of their own, on a CPU: on JAX, and where TensorFlow predicts."""

import collections
import contextlib
import math

import keras
from keras import ops

from keras_dualstream.layers.block import Block
from keras_dualstream.layers.drop_path import DropPath
from keras_dualstream.layers.drop_path import draw_at_once
from keras_dualstream.layers.nested_call import get_global_attribute
from keras_dualstream.models.block_signature import drop_paths_of
from keras_dualstream.models.block_signature import signature_of
from keras_dualstream.models.block_signature import weights_of
from keras_dualstream.models.graph import hands_on
from keras_dualstream.ops.compiler import converting_jax_to_tensorflow
from keras_dualstream.ops.compiler import exporting
from keras_dualstream.ops.compiler import jax_on_cpu
from keras_dualstream.ops.compiler import predicted_by_tensorflow
from keras_dualstream.ops.half_precision import is_full_precision
from keras_dualstream.ops.jax_program import compiled_as_a_whole
from keras_dualstream.ops.jax_program import is_a_step
from keras_dualstream.ops.jax_program import one_after_the_other
from keras_dualstream.ops.jax_program import only_traced
from keras_dualstream.ops.jax_recomputation import keeping_little
from keras_dualstream.ops.tensorflow_program import tensorflow_program

# Numbers in a block's weights up to which a loop over blocks copies them: with the 2.6 million of TransXNet-S' last
# stage it takes 15 MB less and predicts at most 1.5% slower, with DualViT-L's 3.7 million 3%.
WEIGHTS_IN_LOOP = 3 * 2**20


class BlockPrograms:
    """Calls the layers of a graph, and its blocks as programs that alike ones share.

    Where JAX compiles a model for a CPU, it would trace every layer anew, and
    XLA compile it anew and keep for the backward pass what it likes. The program of
    alike blocks is traced once in a walk, and once for gradients, and keeps little (`keeping_little`).

    XLA compiles a program wherever it is called, and keeps it as often. Without training,
    alike blocks in a row are a loop: TransXNet-T is 19,500 instead of 45,300 operations,
    takes 6.9 instead of 9.5 s until its first prediction and 0.40 instead of 0.45 GB,
    and predicts as fast. For gradients there is no loop, whose steps would copy what they
    keep, unless JAX takes them of a program that it has traced as a prediction.

    Where `predict` and `evaluate` have TensorFlow trace a model for a CPU, alike blocks
    share one function of the graph: TransXNet-S is 0.50 to 0.54 instead of 0.62 GB, DS-Net-B
    0.51 instead of 0.60, takes 5 instead of 12 s until its first prediction, and both
    predict as fast.

    Blocks are called as ever where something is unusual: in half precision,
    quantised, with `remat`, with metrics, or for an exporter.

    Args:
        steps: iterator of `Step`, the graph's.
        operation_fn: function from a layer to what calls it, as Keras' walks through graphs have it.
        symbolic: bool. Whether the walk asks for shapes alone, and is given no arrays.
    """

    def __init__(self, steps, operation_fn, symbolic):
        self.steps = list(steps)
        self.operation_fn = operation_fn
        self.programs, self.signatures = {}, {}
        self.drawn = None
        self.scope = None if symbolic else _scope_of_a_program()
        self.functions = set() if symbolic else _functions_of_a_graph(self.steps, operation_fn)

    def runs(self):
        """Splits the steps of the graph into those that one `call` takes.

        Returns:
            Iterator of lists of `Step`.
        """
        run = []
        for step in self.steps:
            if run and not self._goes_on(run[-1], step):
                yield run
                run = []
            run.append(step)
        if run:
            yield run

    def _goes_on(self, last, step):
        """Whether a step is that of a block like the last one, which alone reads what that gives."""
        if self.scope is None or _is_for_training(self.operation_fn) or not hands_on(last, step):
            return False
        layers = last.node.operation, step.node.operation
        if not all(map(_is_plain, layers)) or self._signature(layers[0]) != self._signature(layers[1]):
            return False
        return sum(math.prod(weight.shape) for weight in weights_of(layers[0])) <= WEIGHTS_IN_LOOP

    def call(self, nodes, args, kwargs):
        """Calls the layer of a node, or those of a run: each on what the one before gives, and the other arguments.

        Args:
            nodes: list of nodes of the graph.
            args: tuple of the first one's arguments.
            kwargs: dict of the first one's arguments; a run has none.

        Returns:
            List of the tensors that the last layer gives.
        """
        loop = self._loop(nodes, args) if len(nodes) > 1 else None
        if loop is not None:
            return one_after_the_other(*loop)
        for node in nodes[:-1]:
            args = _with_first(args, keras.tree.flatten(self._call_one(node.operation, args, kwargs)))
        return keras.tree.flatten(self._call_one(nodes[-1].operation, args, kwargs))

    def _call_one(self, layer, args, kwargs):
        if not self._is_called_as_program(layer, kwargs):
            return self.operation_fn(layer)(*args, **kwargs)
        result, changes, losses = self._program(layer)(self._values(layer), self._factors(layer, args[0]), args)
        for weight, value in zip(weights_of(layer), changes, strict=True):
            if value is not None:
                weight.assign(value)
        for loss in losses:
            layer.add_loss(loss)
        return result

    def _factors(self, layer, x):
        """What a block's stochastic depth draws, on JAX for all blocks of the graph when the first one asks."""
        parts = drop_paths_of(layer)
        training = _is_for_training(self.operation_fn)
        if not training or self.scope is None or not parts:
            return [part.draw(x, training=training) for part in parts]
        batch = ops.shape(x)[0]
        if self.drawn is None:
            self.drawn = batch, self._draw(batch)
        drawn = self.drawn[1] if batch == self.drawn[0] else {}
        return [drawn.get(id(part)) or part.draw(x, training=True) for part in parts]

    def _draw(self, batch):
        """What the stochastic depth of all blocks draws, by the id of the layer."""
        nodes = [step.node for step in self.steps]
        blocks = [x.operation for x in nodes if self._is_called_as_program(x.operation, x.arguments.kwargs)]
        parts = [part for block in blocks for part in drop_paths_of(block) if not part.is_given]
        # What a graph calls again draws again.
        calls = collections.Counter(map(id, parts))
        parts = [part for part in parts if calls[id(part)] == 1]
        return dict(zip(map(id, parts), draw_at_once(parts, batch), strict=True))

    def _loop(self, nodes, args):
        """What `one_after_the_other` is to be given for the blocks of a run, `None` where they cannot be a loop."""
        block = nodes[0].operation
        program = self._program(block)
        factors = [part.draw(args[0], training=False) for part in drop_paths_of(block)]

        def call(values, state):
            result, *others = program(values, factors, _with_first(args, state))
            return keras.tree.flatten(result), others

        values = [self._values(node.operation) for node in nodes]
        if any(value is None for of_block in values for value in of_block) or not only_traced((values, args)):
            return None
        state = keras.tree.flatten(args)[: len(nodes[0].outputs)]
        return (call, values, state) if is_a_step(call, values[0], state) else None

    def _is_called_as_program(self, layer, kwargs):
        return not kwargs and self._has_program(layer) and all(value is not None for value in self._values(layer))

    def _has_program(self, layer):
        if self.scope is None and not self.functions:
            return False
        return _is_plain(layer) and (self.scope is not None or self._signature(layer) in self.functions)

    def _values(self, layer):
        weights = weights_of(layer)
        return [weight.value if self.scope is None else self.scope.get_current_value(weight) for weight in weights]

    def _program(self, layer):
        signature = self._signature(layer)
        if signature not in self.programs:
            self.programs[signature] = _program(layer, self.operation_fn(layer), self.scope)
        return self.programs[signature]

    def _signature(self, layer):
        if id(layer) not in self.signatures:
            self.signatures[id(layer)] = signature_of(layer)
        return self.signatures[id(layer)]


def _scope_of_a_program():
    """The scope that holds the variables' values where JAX compiles a whole model for a CPU, `None` elsewhere."""
    if get_global_attribute is None or not jax_on_cpu():
        return None
    scope = get_global_attribute("stateless_scope")
    if scope is None or not compiled_as_a_whole() or exporting() or converting_jax_to_tensorflow():
        return None
    return scope


def _functions_of_a_graph(steps, operation_fn):
    """The signatures of blocks that share a function with another one, where TensorFlow predicts."""
    if get_global_attribute is None or not predicted_by_tensorflow() or _is_for_training(operation_fn):
        return set()
    layers = [step.node.operation for step in steps]
    counts = collections.Counter(signature_of(layer) for layer in layers if _is_plain(layer))
    return {signature for signature, count in counts.items() if count > 1}


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
        # It would draw in its own way outside of the program, and then inside.
        and not (isinstance(part, DropPath) and type(part).draw is not DropPath.draw)
        for part in layer._flatten_layers()
    )


def _program(block, call, outer_scope):
    """The function of a block of any values of its weights and any factors of its stochastic depth."""
    weights = weights_of(block)

    def compute(values, factors, args):
        scope = keras.StatelessScope(collect_losses=True)
        if outer_scope is not None:
            # Not as an argument, by which Keras would cast what a model around is autocasting.
            scope.state_mapping.update(outer_scope.state_mapping)
        for weight, value in zip(weights, values, strict=True):
            scope.add_update((weight, value))
        with scope, contextlib.ExitStack() as stack:
            for part, drawn in zip(drop_paths_of(block), factors, strict=True):
                stack.enter_context(part.giving(drawn))
            result = call(*args)
        after = [scope.get_current_value(weight) for weight in weights]
        return result, [new if new is not old else None for new, old in zip(after, values, strict=True)], scope.losses

    return tensorflow_program(compute) if outer_scope is None else keeping_little(compute)


def _with_first(args, tensors):
    """Arguments, the first of them replaced."""
    return keras.tree.pack_sequence_as(args, [*tensors, *keras.tree.flatten(args)[len(tensors) :]])
