"""What tells whether blocks can share a program."""

import numbers

import keras
import numpy as np

from keras_dualstream.layers.drop_path import DropPath

# The attributes in which layers that share a program may differ: names, and what Keras notes or makes for each.
OF_ONE = {"name", "_path", "_parent_path", "_called", "build", "quantize"}
# And those of Keras and of this package, whose rates and seeds say what is drawn outside of a program, or made for it.
DRAWN = {"drop_path_rate", "seed"}
DRAWN_BY_DROP_PATH = {"rate", "seed_generator"}
# What Keras notes of every layer beside what it computes. TensorFlow's notes begin with `_self_`.
NOTED = {
    *("_auto_config", "_build_shapes_dict", "_call_context_args", "_call_has_context_arg", "_call_signature"),
    *("_dtype_policy", "_inbound_nodes", "_input_spec", "_layers", "_loss_ids", "_losses", "_losses_override"),
    *("_metrics", "_non_trainable_variables", "_outbound_nodes", "_seed_generators", "_tracked", "_tracker"),
    "_trainable_variables",
}
# Objects that say nothing of what a layer computes from its weights, or are looked at by themselves.
LOOKED_AT = (
    keras.Layer,
    keras.Variable,
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
    keras.random.SeedGenerator,
)


def drop_paths_of(layer):
    """The layers of a block's stochastic depth."""
    return [part for part in layer._flatten_layers() if isinstance(part, DropPath)]


def weights_of(layer):
    """A block's variables but for the seeds of its stochastic depth, which is drawn outside of its program."""
    seeds = {id(part.seed_generator.state) for part in drop_paths_of(layer) if part.seed_generator is not None}
    return [variable for variable in layer.variables if id(variable) not in seeds]


def signature_of(layer):
    """Everything by which the programs of two blocks could differ, beside names, values and rates.

    Not their configs, for which Keras imports TensorFlow.
    """
    parts = [
        (type(part), part.compute_dtype, part.variable_dtype, _attributes(part)) for part in layer._flatten_layers()
    ]
    weights = [(weight.shape, weight.dtype, weight.trainable) for weight in weights_of(layer)]
    return repr((parts, weights))


def _attributes(layer):
    """What a layer's attributes say."""
    of_one = OF_ONE | NOTED
    if type(layer).__module__.partition(".")[0] in ("keras", "keras_dualstream"):
        of_one |= DRAWN | (DRAWN_BY_DROP_PATH if isinstance(layer, DropPath) else set())
    return {
        key: _said(value, key)
        for key, value in sorted(vars(layer).items())
        if key not in of_one and not key.startswith("_self_")
    }


def _said(value, key=None):
    """What a number, text or array says, or a tree of these; of anything else which it is, but of a layer's parts."""
    if isinstance(value, list | tuple | dict):
        return [_said(x) for x in (value.items() if isinstance(value, dict) else value)]
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, hash(value.tobytes())
    if isinstance(value, numbers.Number | str | None):
        return value
    if isinstance(value, LOOKED_AT) and key != "activity_regularizer":
        return type(value)
    return id(value)
