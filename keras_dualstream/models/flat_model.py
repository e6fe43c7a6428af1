"""A functional model whose layers are known by name, in its config and in its weights file."""

import os

import h5py
import keras
from keras import ops

from keras_dualstream.conversion.reader.archive import most_bytes
from keras_dualstream.layers.nested_call import get_global_attribute
from keras_dualstream.models.block_programs import BlockPrograms
from keras_dualstream.models.graph import steps_of
from keras_dualstream.ops.compiler import in_a_step_on_tensorflow
from keras_dualstream.ops.tensorflow_program import forget_eager_kernels
from keras_dualstream.presets.folder import write_file


class FlatModel(keras.Model):
    """Functional model with a flat config and weights files addressed by layer name.

    Keras numbers a model's layers by class in the order of its graph, so a
    classifier, its headless model and its backbone would each write another
    file. Addressed by name, one `.weights.h5` file serves all three.
    """

    def __dir__(self):
        # Keras saves and loads what it finds here, and would walk from a model into its backbone, which shares the
        # layers, and from a backbone into itself.
        return [name for name in super().__dir__() if name != "backbone"]

    def _run_through_graph(self, inputs, operation_fn=lambda operation: operation, call_fn=None):
        """Keras' walk through the graph, without what no later layer reads; blocks as `BlockPrograms` calls them.

        Keras keeps what every layer gives until the end: 350 MB more in a prediction of Dual-ViT-B on
        PyTorch, batch 8 at 224 × 224.
        """
        if call_fn is not None or keras.config.is_nnx_enabled():
            return super()._run_through_graph(inputs, operation_fn, call_fn)
        tensors = dict(zip(map(id, self.inputs), keras.tree.flatten(inputs), strict=False))
        if _only_shapes_matter() and _sizes_are_known(self, tensors):
            batch = ops.shape(tensors[id(self.inputs[0])])[0]
            return keras.tree.map_structure(lambda x: ops.zeros((batch, *x.shape[1:]), x.dtype), self._outputs_struct)
        if in_a_step_on_tensorflow():
            forget_eager_kernels()
        symbolic = any(isinstance(x, keras.KerasTensor) for x in tensors.values())
        programs = BlockPrograms(steps_of(self), operation_fn, symbolic)
        for run in programs.runs():
            args, kwargs = run[0].node.arguments.fill_in(tensors)
            tensors = {key: x for key, x in tensors.items() if key in run[-1].read_later}
            results = programs.call([step.node for step in run], args, kwargs)
            tensors.update(zip(map(id, run[-1].node.outputs), results, strict=False))
        return keras.tree.pack_sequence_as(self._outputs_struct, [tensors[id(x)] for x in self.outputs])

    def train_step(self, *args, **kwargs):
        """Keras' step, which on PyTorch drops the gradients of the step before only after the forward pass.

        They are as large as the weights: 190 MB of 3.1 GB in a step of DS-Net-B, batch 8 at 224 × 224.
        """
        if keras.config.backend() == "torch":
            self.zero_grad()
        return super().train_step(*args, **kwargs)

    def save_weights(self, filepath, overwrite=True, **kwargs):
        """Saves the weights, and the optimizer's once it has any; the file appears whole or not at all.

        Args:
            filepath: path ending in `.weights.h5`.
            overwrite: bool. Whether an existing file is replaced without
                asking. Defaults to `True`.
            **kwargs: other arguments of `keras.Model.save_weights`, which then
                writes the file in Keras' own layout.
        """
        filepath = os.fspath(filepath)
        if kwargs or not filepath.endswith(".weights.h5"):
            super().save_weights(filepath, overwrite=overwrite, **kwargs)
        elif os.path.exists(filepath) and not overwrite:
            raise ValueError(f"The weights file exists and `overwrite=False`. Received: filepath={filepath!r}")
        else:
            write_file(filepath, lambda path: save_layers(self.layers, path, _built(self)))

    def load_weights(self, filepath, skip_mismatch=False, **kwargs):
        """Loads every layer's weights by the layer's name; another head in the file is left alone.

        Args:
            filepath: path of a `.weights.h5` file of this model, of its
                backbone, or of one with the same backbone.
            skip_mismatch: bool. Whether layers that are missing in the file or
                have other shapes keep their weights. Defaults to `False`.
            **kwargs: other arguments of `keras.Model.load_weights`.

        Raises:
            ValueError: if the file is missing, unreadable or does not fit. The
                model is then as it was.
        """
        filepath = os.fspath(filepath)
        if not filepath.endswith(".weights.h5"):
            super().load_weights(filepath, skip_mismatch=skip_mismatch, **kwargs)
        else:
            if not skip_mismatch:
                check_surplus(self, filepath)
            load_layers(self.layers, filepath, optimizer=_built(self), skip_mismatch=skip_mismatch, **kwargs)

    def get_config(self):
        return {"name": self.name, "frozen_layers": [layer.name for layer in self.layers if not layer.trainable]}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        frozen_layers = config.pop("frozen_layers", ())
        model = cls(**config)
        for layer in model.layers:
            if layer.name in frozen_layers:
                layer.trainable = False
        return model


def _only_shapes_matter():
    """Whether Keras asks for the outputs' shapes and dtypes, as before the first step of training.

    They are known where the sizes are; to trace the layers for them takes 4.3 s for TransXNet-S on JAX.
    """
    return get_global_attribute is not None and get_global_attribute("symbolic_scope") is not None


def _sizes_are_known(model, tensors):
    """Whether inputs have all the sizes that the graph was made with, and the outputs' are known but for the batch."""
    as_made = all(tuple(tensors[id(x)].shape[1:]) == tuple(x.shape[1:]) for x in model.inputs)
    return as_made and not any(None in x.shape[1:] for x in model.outputs)


def save_layers(layers, filepath, optimizer=None):
    """Saves the weights of some layers by name.

    Args:
        layers: list of layers.
        filepath: path ending in `.weights.h5`.
        optimizer: optimizer whose variables are saved too. Defaults to `None`.
    """
    keras.saving.save_weights(_by_name(layers, optimizer), filepath)


def load_layers(layers, filepath, optimizer=None, **kwargs):
    """Loads the weights of some layers by name, all of them or none.

    Args:
        layers: list of layers.
        filepath: path of a `.weights.h5` file that a `FlatModel` saved.
        optimizer: optimizer whose variables are loaded too, where the file has any. Defaults to `None`.
        **kwargs: arguments of `keras.saving.load_weights`.

    Raises:
        ValueError: if the file is missing, unreadable or does not fit.
    """
    optimizer = optimizer if "optimizer" in _contents(filepath) else None
    if not _fits(layers, filepath, optimizer, **kwargs):
        misfits = [layer.name for layer in layers if layer.weights and not _fits([layer], filepath, undo=True)]
        raise ValueError(
            f"The weights file {filepath!r} does not fit the model, which is unchanged. Build the model with the "
            f"variant, options and channels that saved the file. Missing or of other shapes: {', '.join(misfits)}"
        )


def check_surplus(model, filepath):
    """Sees to it that no weights of a backbone in the file would be left over.

    Args:
        model: a `FlatModel`.
        filepath: path of a `.weights.h5` file that a `FlatModel` saved.

    Raises:
        ValueError: if the file is missing or damaged, or holds blocks or parts
            of blocks that the model does not have.
    """
    known = {layer.name: len(layer.weights) for layer in model.layers}
    # A head may differ, and a model without position bias leaves it out on purpose.
    surplus = [
        name
        for name, count in _contents(filepath).items()
        if count > known.get(name, 0) and name.startswith(("stem", "stage")) and not name.endswith("_position_bias")
    ]
    if surplus:
        raise ValueError(
            f"The weights file {filepath!r} is of a larger model. Build the model with the variant and options that "
            f"saved the file. The file has more weights of: {', '.join(surplus)}"
        )


def _contents(filepath):
    """The number of arrays of every group of a weights file, all of them read once."""
    if not os.path.isfile(filepath):
        raise ValueError(f"The weights file does not exist. Received: {filepath!r}")
    counts = {}
    left = most_bytes(os.path.getsize(filepath))

    def read(path, item):
        nonlocal left
        if isinstance(item, h5py.Dataset):
            left -= item.nbytes
            if left < 0:
                raise ValueError(f"it declares more than a file of {os.path.getsize(filepath)} bytes holds")
            item[()]
            name = path.partition("/")[0]
            counts[name] = counts.get(name, 0) + 1

    try:
        with h5py.File(filepath, "r") as file:
            file.visititems(read)
    except Exception as error:
        raise ValueError(f"The weights file {filepath!r} is damaged or not HDF5. Cause: {error}") from error
    return counts


def _fits(layers, filepath, optimizer=None, undo=False, **kwargs):
    """Loads and tells whether that worked; otherwise, or with `undo`, everything is as it was."""
    variables = [variable for layer in layers for variable in layer.weights]
    variables += [] if optimizer is None else optimizer.variables
    before = [keras.ops.convert_to_numpy(variable) for variable in variables]
    fits = True
    try:
        keras.saving.load_weights(_by_name(layers, optimizer), filepath, **kwargs)
    except Exception:
        fits = False
    if undo or not fits:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
    return fits


def _built(model):
    """The model's optimizer once it has variables, else `None`."""
    optimizer = getattr(model, "optimizer", None)
    return optimizer if optimizer is not None and optimizer.built else None


def _by_name(layers, optimizer=None):
    """A layer that holds `layers` as attributes named like them, for Keras to walk through."""
    holder = keras.layers.Layer()
    holder.built = True
    for layer in layers:
        if layer.weights:
            setattr(holder, layer.name, layer)
    if optimizer is not None:
        holder.optimizer = optimizer
    return holder
