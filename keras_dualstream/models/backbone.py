"""What every backbone is: a functional graph with a flat config, a pyramid and presets."""

import os

import keras

from keras_dualstream.layers.float64 import GlobalAveragePooling2D
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.models.flat_model import FlatModel
from keras_dualstream.presets.folder import read_preset
from keras_dualstream.presets.folder import write_preset

POOLINGS = {"avg": GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}


class Backbone(FlatModel):
    """A functional model from images to a pyramid of feature maps.

    Its output is the last map of the pyramid, or a vector with `pooling`. A
    family's `__init__` makes the graph and hands it over.

    Args:
        images: KerasTensor of the images.
        pyramid: dict of KerasTensors `"P2"` … `"P5"`, `(batch, height, width, channels)`.
        options: `ImageOptions` of the family's `__init__`.
        config: dict of the other arguments of the family's `__init__`, but for `name`.
        name: str. Name of the model.

    Attributes:
        pyramid_outputs: dict of KerasTensors; level `Pn` is `2ⁿ` times smaller
            than the images and laid out like them.
        features: KerasTensor. The last map, `(batch, height, width, channels)`.
        data_format: str. `"channels_last"` or `"channels_first"`, of images and pyramid.
    """

    # Arguments of `classification_head` beside the number of classes.
    head_options = ()

    def __init__(self, images, pyramid, options, config, name):
        features = list(pyramid.values())[-1]
        pyramid_outputs = {level: _laid_out(x, level, options) for level, x in pyramid.items()}
        output = list(pyramid_outputs.values())[-1]
        if options.pooling is not None:
            pool = POOLINGS[options.pooling](
                data_format="channels_last", dtype=options.dtype, name=f"{options.pooling}_pool"
            )
            output = pool(features)
        inputs = keras.utils.get_source_inputs(images)
        super().__init__(inputs=inputs[0] if len(inputs) == 1 else inputs, outputs=output, name=name)
        self.dtype_policy = options.dtype
        self.features = features
        self.data_format = options.data_format
        # Of a user's graph before `input_tensor`; no weights file of this package knows them.
        upstream = [] if options.input_tensor is None else keras.Model(inputs, options.input_tensor).layers
        self._upstream = {layer.name for layer in upstream}
        self._pyramid_outputs = pyramid_outputs
        self._config = {**config, **vars(options)}

    @property
    def pyramid_outputs(self):
        """The KerasTensors of the feature pyramid, `"P2"` … `"P5"`."""
        return dict(self._pyramid_outputs)

    @property
    def pyramid_level_inputs(self):
        """The names of the layers whose outputs `pyramid_outputs` are, by which KerasCV's detectors find them."""
        return {level: x._keras_history.operation.name for level, x in self._pyramid_outputs.items()}

    @property
    def own_layers(self):
        """The layers but for those before `input_tensor`."""
        return [layer for layer in self.layers if layer.name not in self._upstream]

    @property
    def backbone(self):
        """The model itself, so that every model of this package has a `backbone`."""
        return self

    def averaged_head(self, norm, num_classes):
        """The classification head of most families: normalisation, average over the positions, linear layer.

        Args:
            norm: layer that normalises the last map.
            num_classes: int.

        Returns:
            The logits, and the dict `{"logits": logits}`.
        """
        pool = GlobalAveragePooling2D(data_format="channels_last", name="pool", dtype=self.dtype_policy)
        logits = linear(num_classes, "classifier", self.dtype_policy)(pool(norm(self.features)))
        return logits, {"logits": logits}

    def get_config(self):
        config = {**self._config, "dtype": keras.dtype_policies.serialize(self._config["dtype"])}
        if config["input_tensor"] is not None:
            # The layers before `input_tensor` belong to this graph and travel with it.
            before = keras.Model(self.inputs, config["input_tensor"])
            config["input_tensor"] = keras.saving.serialize_keras_object(before)
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        if isinstance(config.get("input_tensor"), dict):
            config["input_tensor"] = keras.saving.deserialize_keras_object(config["input_tensor"]).output
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
        return super().from_config(config, custom_objects)

    def save_to_preset(self, preset_dir):
        """Saves config and weights into a folder for `from_preset`.

        Args:
            preset_dir: path of the folder; made if missing.
        """
        config = keras.saving.serialize_keras_object(self)
        write_preset(os.fspath(preset_dir), config, self.save_weights)

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """Makes the backbone that `save_to_preset` saved.

        Args:
            preset: path of the folder.
            load_weights: bool. Whether to load the weights; otherwise they are
                new. Defaults to `True`.
            **kwargs: arguments of the constructor that replace the saved ones.

        Returns:
            A backbone of this class.

        Raises:
            ValueError: if the folder or a file in it is missing, damaged or of
                another class.
        """
        config, weights = read_preset(os.fspath(preset))
        if config["class_name"] != cls.__name__:
            raise ValueError(
                f"The preset holds a {config['class_name']}; load it with `{config['class_name']}.from_preset`. "
                f"Received: preset={preset!r} for {cls.__name__}"
            )
        try:
            backbone = cls.from_config({**config["config"], **kwargs})
        except TypeError as error:
            raise ValueError(
                f"The preset {preset!r} or the arguments {kwargs} do not fit {cls.__name__}. Cause: {error}"
            ) from error
        if load_weights:
            backbone.load_weights(weights)
        return backbone


def check_per_stage(**arguments):
    """The arguments as tuples, once each is known to have one value for each of the four stages.

    Args:
        **arguments: tuples or lists of four numbers.

    Returns:
        Dict of tuples.

    Raises:
        ValueError: if an argument has another number of values, or one that is not positive.
    """
    for name, values in arguments.items():
        if not isinstance(values, (tuple, list)) or len(values) != 4:
            raise ValueError(f"`{name}` must have one value for each of the 4 stages. Received: {values}")
        if min(values) <= 0:
            raise ValueError(f"`{name}` must be positive. Received: {values}")
    return {name: tuple(values) for name, values in arguments.items()}


def _laid_out(x, level, options):
    """The channels-last map `x` in the layout of the user's images."""
    if options.data_format == "channels_last":
        return x
    return keras.layers.Permute((3, 1, 2), dtype=options.dtype, name=f"{level}_channels_first")(x)
