"""What every backbone is: a functional graph with a flat config, a pyramid and presets."""

import keras

from keras_dualstream.conversion.checkpoint import load_checkpoint
from keras_dualstream.conversion.checkpoint import to_torch_state_dict
from keras_dualstream.layers.float64 import GlobalAveragePooling2D
from keras_dualstream.layers.pytorch_defaults import linear
from keras_dualstream.models.flat_model import FlatModel
from keras_dualstream.models.flat_model import check_surplus
from keras_dualstream.models.flat_model import load_layers
from keras_dualstream.models.flat_model import save_layers
from keras_dualstream.presets.folder import PresetInfo
from keras_dualstream.presets.folder import write_preset
from keras_dualstream.presets.preprocessing import Preprocessing
from keras_dualstream.presets.preprocessing import check_statistics
from keras_dualstream.presets.weights import find_weights

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

    # The arguments of the published variants, by the name of their builder.
    variants = {}
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
    def image_size(self):
        """Height and width of the images, or `None` where one of them is free."""
        shape = self._config["image_shape"]
        size = tuple(shape[:2] if self.data_format == "channels_last" else shape[1:])
        return None if None in size else size

    @property
    def pyramid_level_inputs(self):
        """The names of the layers whose outputs `pyramid_outputs` are, by which KerasCV's detectors find them."""
        return {level: x._keras_history.operation.name for level, x in self._pyramid_outputs.items()}

    @property
    def includes_preprocessing(self):
        """Whether the model normalises its images."""
        return self._config["include_preprocessing"]

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

    def save_to_preset(self, preset_dir, preprocessing=None, class_names=None, provenance=None, licence=None):
        """Saves config and weights, and what is known about them, into a folder for `from_preset` and `weights=`.

        With them go the SHA-256 of the files, by which damage is noticed.

        Args:
            preset_dir: path of the folder; made if missing.
            preprocessing: `Preprocessing` that images need before the model.
                Defaults to the model's image size, or 224×224 if that is free,
                and a crop of 0.875.
            class_names: list of str, in the order of the classes. Defaults to `None`.
            provenance: str. Where the weights come from. Defaults to `None`.
            licence: str. What allows to use them. Defaults to `None`.

        Raises:
            ValueError: if an argument has none of these values, there are not as
                many names as classes, or the model normalises images by other
                statistics than those of `preprocessing`.
        """
        classes = getattr(self, "num_classes", None)
        if None not in (class_names, classes) and len(class_names) != classes:
            raise ValueError(f"`class_names` must have {classes} names. Received: {len(class_names)}")
        preprocessing = preprocessing or Preprocessing(self.backbone.image_size or Preprocessing().image_size)
        info = PresetInfo(preprocessing, class_names, provenance, licence)
        if self.backbone.includes_preprocessing:
            check_statistics(preprocessing)
        config = keras.saving.serialize_keras_object(self.backbone)
        write_preset(preset_dir, config, lambda path: save_layers(self.layers, path), info)

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """Makes a backbone with the weights of a preset.

        Args:
            preset: a name of `keras_dualstream.list_presets()`; the path of a
                folder that `save_to_preset` made, or `hf://user/repository` for
                one on the Hugging Face Hub; or the path or `https://` address of
                a `.weights.h5` file or checkpoint, which has no config: the
                backbone is then that of the arguments.
            load_weights: bool. Whether to load the weights; otherwise they are
                new, and published ones are not downloaded. Defaults to `True`.
            **kwargs: arguments of the constructor that replace the preset's.

        Returns:
            A backbone of this class.

        Raises:
            ValueError: if there is no such preset, or it is damaged or of
                another class.
            OSError: if it cannot be downloaded.
        """
        found = find_weights(preset, list(cls.variants), load_weights)
        found.check_class(cls.__name__)
        if found.config is not None:
            config = found.config["config"]
        elif found.published is not None:
            config = {**cls.variants[found.published.variant], **found.published.options}
        else:
            config = {}
        try:
            backbone = cls.from_config({**config, **kwargs})
        except TypeError as error:
            raise ValueError(
                f"The preset {preset!r} or the arguments {kwargs} do not fit {cls.__name__}. Cause: {error}"
            ) from error
        if load_weights and found.path.endswith(".weights.h5"):
            load_backbone(backbone, found)
        elif load_weights:
            load_checkpoint(backbone, found.path)
        return backbone


def load_backbone(backbone, found):
    """Loads weights, adapted as those of a checkpoint are where the backbone differs from the one of their preset.

    Args:
        backbone: a `Backbone`.
        found: `Weights` with a `.weights.h5` file.

    Raises:
        ValueError: if they do not fit. The backbone is then as it was.
    """
    try:
        check_surplus(backbone, found.path)
        load_layers(backbone.own_layers, found.path)
    except ValueError:
        if found.config is None:
            raise
        saved = type(backbone).from_config(found.config["config"])
        load_layers(saved.layers, found.path)
        load_checkpoint(backbone, to_torch_state_dict(saved))


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
