"""RetinaNet: KerasHub's detector on a backbone or a feature pyramid of this package."""

import math
import numbers

import keras

from keras_dualstream.models.pyramid_input import layout_of

# Those that KerasHub's anchors and non-maximum suppression take, of all in `keras.utils.bounding_boxes`.
BOX_FORMATS = ("xyxy", "yxyx", "xywh", "center_xywh", "center_yxhw")
# Of the convolutions that RetinaNet puts on a pyramid, as in its paper.
HEAD_STANDARD_DEVIATION = 0.01


def RetinaNet(
    backbone,
    num_classes,
    bounding_box_format="xyxy",
    classification_head_prior_probability=0.01,
    **options,
):
    """KerasHub's RetinaNet on a pyramid or on a backbone of this package.

    Anchors, label encoder, losses and non-maximum suppression are KerasHub's.
    The new weights are those of RetinaNet's paper instead: the convolutions of
    both heads are drawn from a normal distribution of standard deviation 0.01,
    and the bias of the class scores makes every class as probable as
    `classification_head_prior_probability` (KerasHub 0.32 gives this bias to the
    boxes, and all layers of a head the same values).

    Args:
        backbone: `DSFPN`, or a model of another class whose output is a dict of
            maps and whose instances have the attributes `image_shape`,
            `min_level` and `max_level`; or a backbone of this package or of KerasHub, which gets KerasHub's
            feature pyramid network with P3 … P7. Layout `"channels_last"`.
        num_classes: int. Number of classes.
        bounding_box_format: str. How boxes are given and predicted, in pixels:
            `"xyxy"`, `"yxyx"`, `"xywh"`, `"center_xywh"` or `"center_yxhw"`.
            Defaults to `"xyxy"`.
        classification_head_prior_probability: float in `(0, 1)`. Probability of
            every class at every anchor before training. Defaults to `0.01`.
        **options: other arguments of `keras_hub.models.RetinaNetObjectDetector`,
            such as `anchor_generator`, `pre_logits_num_conv_layers` and
            `prediction_decoder`.

    Returns:
        A `keras_hub.models.RetinaNetObjectDetector`. `compile` has its losses,
        `fit` takes images and a dict of `"boxes"` `(batch, boxes, 4)` and
        `"labels"` `(batch, boxes)`, both -1 where an image has fewer, and
        `predict` gives a dict of `"boxes"`, `"labels"`, `"confidence"` and
        `"num_detections"`. A `.keras` file holds it all but losses that are not
        KerasHub's: compile again after loading.

    Raises:
        ImportError: if KerasHub is not installed.
        ValueError: if an argument has none of the values above, or if the maps
            for images of the size of `backbone` are not of the size that
            KerasHub lays its anchors out for, `⌈size / 2ⁿ⌉` at level `Pn`.
            Multiples of `2 ** max_level`, 128 for P7, always are; with images of
            unknown size every image must be one.

    Example:

    >>> backbone = keras_dualstream.DSNetBackbone(
    ...     embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4), depths=(1, 1, 1, 1), image_shape=(128, 128, 3))
    >>> detector = RetinaNet(keras_dualstream.DSFPN(backbone, channels=16), num_classes=3)
    >>> {name: x.shape[1:] for name, x in detector.output.items()}
    {'bbox_regression': (3069, 4), 'cls_logits': (3069, 3)}

    Reference:
        Lin et al., "Focal Loss for Dense Object Detection" (2017),
        https://arxiv.org/abs/1708.02002
    """
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError("`RetinaNet` needs KerasHub: pip install keras-hub") from error
    _check_arguments(num_classes, bounding_box_format, classification_head_prior_probability)
    pyramid = backbone if _is_pyramid(backbone) else _plain_pyramid(backbone, keras_hub)
    _check_layout(pyramid)
    if not isinstance(pyramid, keras_hub.models.RetinaNetBackbone):
        # KerasHub's own maps fit, though it states smaller shapes of P6 and P7 than they have.
        _check_sizes(pyramid)
    detector = keras_hub.models.RetinaNetObjectDetector(pyramid, num_classes, bounding_box_format, **options)
    prior = classification_head_prior_probability
    _initialize(detector.box_head, 0.0)
    _initialize(detector.classification_head, math.log(prior / (1 - prior)))
    return detector


def _check_arguments(num_classes, bounding_box_format, prior):
    if not isinstance(num_classes, numbers.Integral) or num_classes < 1:
        raise ValueError(f"`num_classes` must be an int of at least 1. Received: num_classes={num_classes!r}")
    if bounding_box_format not in BOX_FORMATS:
        raise ValueError(
            f"`bounding_box_format` must be one of {', '.join(map(repr, BOX_FORMATS))}. "
            f"Received: bounding_box_format={bounding_box_format!r}"
        )
    if not isinstance(prior, numbers.Real) or not 0 < prior < 1:
        raise ValueError(
            "`classification_head_prior_probability` must be in (0, 1). "
            f"Received: classification_head_prior_probability={prior!r}"
        )


def _is_pyramid(model):
    """Whether a model is what KerasHub's detector asks for, without another pyramid on it."""
    attributes = all(hasattr(model, name) for name in ("image_shape", "min_level", "max_level"))
    # A functional model of Keras' own class has lost the attributes when it comes back from a file.
    own_class = not type(model).__module__.startswith("keras.")
    return attributes and own_class and isinstance(model, keras.Model) and isinstance(model.output, dict)


def _plain_pyramid(backbone, keras_hub):
    """KerasHub's feature pyramid network on a backbone, P6 from its P5 as in the paper."""
    if not hasattr(type(backbone), "pyramid_outputs"):
        raise ValueError(
            "`backbone` must be a backbone with `pyramid_outputs` or a pyramid such as `DSFPN`, which any functional "
            f"model can be given to. Received: {type(backbone).__name__}"
        )
    _check_layout(backbone)
    image_shape = tuple(backbone.input.shape[1:])
    if any(size is not None and size % 32 for size in image_shape[:2]):
        raise ValueError(
            "KerasHub's feature pyramid network doubles P5 and P4, so height and width of the images must be "
            f"divisible by 32; `DSFPN(backbone, position=None)` resizes them. Received: images of {image_shape}"
        )
    return keras_hub.models.RetinaNetBackbone(
        backbone,
        min_level=3,
        max_level=7,
        use_p5=True,
        image_shape=image_shape,
        data_format="channels_last",
        dtype=backbone.dtype_policy,
        name="pyramid",
    )


def _check_layout(model):
    if layout_of(model, None) != "channels_last":
        raise ValueError(
            "KerasHub's detector reads channels-last images. Received: a backbone with data_format='channels_first'"
        )


def _check_sizes(pyramid):
    """Raises a `ValueError` if the maps of images of known size have other sizes than KerasHub's anchors."""
    height, width, _ = pyramid.image_shape
    for level in range(pyramid.min_level, pyramid.max_level + 1):
        found = pyramid.output[f"P{level}"].shape[1:3]
        expected = tuple(None if size is None else math.ceil(size / 2**level) for size in (height, width))
        if any(a is not None and a != b for a, b in zip(expected, found, strict=True)):
            raise ValueError(
                f"KerasHub lays out anchors for P{level} of {expected[0]}x{expected[1]}, where the pyramid has "
                f"{found[0]}x{found[1]}. Sizes of images that {2**pyramid.max_level} divides always fit. "
                f"Received: images of {height}x{width}"
            )


def _initialize(head, bias):
    """New weights for a prediction head, those of its last layer's biases given."""
    for layer in (*head.conv_layers, head.prediction_layer):
        layer.kernel.assign(keras.random.normal(layer.kernel.shape, stddev=HEAD_STANDARD_DEVIATION))
    head.prediction_layer.bias.assign(keras.ops.full(head.prediction_layer.bias.shape, bias))
