"""Image classifiers, and the one place where builders are made."""

import dataclasses
import numbers
import warnings

import keras

from keras_dualstream.conversion.checkpoint import load_checkpoint
from keras_dualstream.models.backbone import Backbone
from keras_dualstream.models.backbone import load_backbone
from keras_dualstream.models.flat_model import FlatModel
from keras_dualstream.models.flat_model import load_layers
from keras_dualstream.models.image_input import ImageOptions
from keras_dualstream.models.image_input import check_pooling
from keras_dualstream.presets.preprocessing import Preprocessing
from keras_dualstream.presets.preprocessing import check_statistics
from keras_dualstream.presets.weights import find_weights


@keras.saving.register_keras_serializable(package="keras_dualstream")
class ImageClassifier(FlatModel):
    """A backbone and its classification head in one flat graph.

    Args:
        backbone: a `Backbone`, whose layers the classifier shares.
        num_classes: int. Defaults to `1000`.
        classifier_activation: name or function applied to the logits; `None`
            for logits. It runs in float32 under a mixed policy. Defaults to
            `"softmax"`.
        name: str. Name of the model. Defaults to `None`.
        **head_options: the backbone's own arguments of the head, such as
            `token_label_head` of Dual-ViT.

    Attributes:
        backbone: the backbone that shares the classifier's layers.
        training_outputs: dict of KerasTensors that training can use beside the
            output, such as `"token_logits"` for token labelling.

    Raises:
        ValueError: if `num_classes` is not a positive int.

    Example:

    >>> backbone = keras_dualstream.DualViTBackbone(
    ...     embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), depths=(1, 1, 1, 1), image_shape=(32, 32, 3))
    >>> classifier = ImageClassifier(backbone, num_classes=5)
    >>> tuple(classifier(keras.ops.ones((2, 32, 32, 3))).shape)
    (2, 5)
    """

    def __init__(self, backbone, num_classes=1000, classifier_activation="softmax", name=None, **head_options):
        if not isinstance(backbone, Backbone):
            raise ValueError(f"`backbone` must be a backbone of keras_dualstream. Received: {type(backbone)}")
        if not isinstance(num_classes, numbers.Integral) or isinstance(num_classes, bool) or num_classes < 1:
            raise ValueError(f"The number of classes must be a positive int. Received: {num_classes!r}")
        activation = keras.activations.get(classifier_activation)
        num_classes = int(num_classes)
        logits, training_outputs = backbone.classification_head(num_classes, **head_options)
        predictions = keras.layers.Activation(
            activation, dtype=backbone.dtype_policy.variable_dtype, name="predictions"
        )(logits)
        super().__init__(inputs=backbone.input, outputs=predictions, name=name)
        # Past Keras' attribute tracking: the backbone's layers are in this graph already.
        object.__setattr__(self, "backbone", backbone)
        self.dtype_policy = backbone.dtype_policy
        self._training_outputs = training_outputs
        self.num_classes = num_classes
        self.classifier_activation = activation
        self._head_options = head_options

    @property
    def training_outputs(self):
        """The KerasTensors that training can use beside the output, by name."""
        return dict(self._training_outputs)

    # As of a backbone, with the head's weights.
    save_to_preset = Backbone.save_to_preset

    def get_config(self):
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_classes": self.num_classes,
            "classifier_activation": keras.activations.serialize(self.classifier_activation),
            **self._head_options,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        backbone = keras.saving.deserialize_keras_object(config["backbone"])
        return super().from_config({**config, "backbone": backbone}, custom_objects)


BUILDER_DOCSTRING = """Builds {variant}: `{backbone}({defaults})`.

    Args:
        include_top: bool. `True` gives a classifier; `False` gives the backbone,
            whose output is the last feature map. Defaults to `True`.
        weights: `None` for new weights; `"imagenet"` or a name of
            `keras_dualstream.list_presets()` for published ones, downloaded
            once; the path of a `.weights.h5` file that a model of this variant
            saved (with any head or none), of a checkpoint that
            `conversion.read_checkpoint` reads, or of a preset folder;
            `hf://user/repository` for such a folder; or the `https://` address
            of such a file. Where the head does not fit, it is new. Defaults to
            `None`.
        input_tensor: KerasTensor to use as images. Defaults to `None`.
        input_shape: tuple of three. Shape of one image; height and width may be
            `None`. Defaults to RGB images of the size that the weights' preset
            names, or else 224x224, with `include_top`, otherwise to RGB images
            of any size.
        pooling: with `include_top=False`, `None` for the feature map, `"avg"` or
            `"max"` for its average or maximum. Defaults to `None`.
        classes: int. Number of classes, with `include_top`. Defaults to `1000`.
        classifier_activation: name or function applied to the logits, with
            `include_top`; `None` for logits. Defaults to `"softmax"`.
        include_preprocessing: bool. `True` takes RGB images in `[0, 255]`,
            `False` takes normalised ones. Defaults to `True`.
        name: str. Name of the model. Defaults to `"{variant}"`.
        **backbone_options: other arguments of `{backbone}`, such as
            `drop_path_rate`, `data_format` or `dtype`, and with `include_top`
            of its head, such as `token_label_head`. What neither they nor the
            variant tell is as in the preset of the weights.

    Returns:
        An `ImageClassifier`, or a `{backbone}` with `include_top=False`. Both
        have the attribute `backbone`.

    Raises:
        ValueError: if an argument has none of the values above, or the weights
            cannot be read or do not fit.
        OSError: if the weights cannot be downloaded.
    """


def make_builder(variant, backbone_class, defaults):
    """The function that builds one variant, with the signature of `keras.applications`.

    Args:
        variant: str. Name of the function and of its models.
        backbone_class: the family's `Backbone`.
        defaults: dict of the variant's arguments of `backbone_class`.

    Returns:
        The builder.
    """

    def builder(
        include_top=True,
        weights=None,
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=1000,
        classifier_activation="softmax",
        include_preprocessing=True,
        name=variant,
        **backbone_options,
    ):
        check_pooling(pooling)
        _check_input_shape(input_shape, input_tensor)
        if weights is not None and include_top and classifier_activation not in (None, "softmax"):
            raise ValueError(
                "With `weights`, `classifier_activation` must be None or 'softmax'. "
                f"Received: classifier_activation={classifier_activation!r}"
            )
        found = None if weights is None else find_weights(weights, [variant])
        if found is not None and include_preprocessing:
            check_statistics(found.info.preprocessing)
        options = {**defaults, **_options_of(found, backbone_class, defaults), **backbone_options}
        head_options = {key: options.pop(key) for key in backbone_class.head_options if key in options}
        model = backbone_class(
            image_shape=input_shape or _default_shape(include_top, options.get("data_format"), found),
            input_tensor=input_tensor,
            include_preprocessing=include_preprocessing,
            pooling=None if include_top else pooling,
            name=f"{name}_backbone" if include_top else name,
            **options,
        )
        if include_top:
            model = ImageClassifier(model, classes, classifier_activation, name=name, **head_options)
        if found is not None:
            _load_pretrained(model, found)
        return model

    builder.__name__ = builder.__qualname__ = variant
    builder.__module__ = backbone_class.__module__
    builder.__doc__ = BUILDER_DOCSTRING.format(
        variant=variant,
        backbone=backbone_class.__name__,
        defaults=", ".join(f"{key}={value!r}" for key, value in defaults.items()),
    )
    return builder


def _check_input_shape(input_shape, input_tensor):
    if input_shape is None or not keras.backend.is_keras_tensor(input_tensor):
        return
    if tuple(input_shape) != tuple(input_tensor.shape[1:]):
        raise ValueError(
            "`input_shape` must be the shape of `input_tensor`, or None. "
            f"Received: input_shape={tuple(input_shape)}, input_tensor of shape {tuple(input_tensor.shape[1:])}"
        )


def _options_of(found, backbone_class, defaults):
    """The arguments that the weights were made with and that a variant leaves open."""
    if found is None:
        return {}
    found.check_class(backbone_class.__name__)
    if found.config is None:
        return found.published.options if found.published else {}
    of_the_model = {*defaults, "name", "frozen_layers", *(field.name for field in dataclasses.fields(ImageOptions))}
    return {key: value for key, value in found.config["config"].items() if key not in of_the_model}


def _default_shape(include_top, data_format, found):
    preprocessing = Preprocessing() if found is None else found.info.preprocessing
    size = preprocessing.image_size if include_top else (None, None)
    channels_first = (data_format or keras.config.image_data_format()) == "channels_first"
    return (3, *size) if channels_first else (*size, 3)


def _load_pretrained(model, found):
    """Loads the backbone, and of the head what fits; the rest of the head stays new, with a warning."""
    weights_file = found.path
    if not weights_file.endswith(".weights.h5"):
        load_checkpoint(model, weights_file)
        return
    load_backbone(model.backbone, found)
    backbone_layers = model.backbone.layers
    new = []
    for layer in model.layers:
        if layer.weights and layer not in backbone_layers:
            try:
                load_layers([layer], weights_file)
            except ValueError:
                new.append(layer.name)
    if new:
        warnings.warn(
            f"The file {weights_file!r} has another head or none, so these layers are new: {', '.join(sorted(new))}.",
            stacklevel=3,
        )
