"""From what users have as a backbone to the maps P3, P4 and P5 of a feature pyramid network."""

import keras


def as_model(backbone):
    """The backbone as a model, also where it is a dict of its maps.

    Args:
        backbone: model, or dict of KerasTensors.

    Returns:
        The model; of a dict, a functional one whose output is the dict.

    Raises:
        ValueError: if there is no KerasTensor in a dict.
    """
    if not isinstance(backbone, dict):
        return backbone
    maps = {level: x for level, x in backbone.items() if keras.backend.is_keras_tensor(x)}
    if not maps:
        raise ValueError(f"`backbone` must be a model or a dict of KerasTensors. Received: {backbone}")
    inputs = list({id(tensor): tensor for x in maps.values() for tensor in keras.utils.get_source_inputs(x)}.values())
    return keras.Model(inputs[0] if len(inputs) == 1 else inputs, maps, name="backbone")


def layout_of(backbone, data_format):
    """The layout of the backbone's maps.

    Args:
        backbone: model.
        data_format: str; `None` for the backbone's own attribute, or else
            `keras.config.image_data_format()`.

    Returns:
        `"channels_last"` or `"channels_first"`.

    Raises:
        ValueError: if it is neither, or not the backbone's.
    """
    own = getattr(backbone, "data_format", None)
    if None not in (data_format, own) and data_format != own:
        raise ValueError(f"`data_format` must be the backbone's, {own!r}. Received: data_format={data_format!r}")
    data_format = data_format or own or keras.config.image_data_format()
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            f"`data_format` must be 'channels_last' or 'channels_first'. Received: data_format={data_format!r}"
        )
    return data_format


def maps_of(backbone, data_format):
    """The maps that a pyramid is made from.

    Args:
        backbone: model with the attribute `pyramid_outputs`, or whose output is
            such a dict.
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        Dict of the KerasTensors of P3, P4 and P5, by the numbers 3, 4 and 5.

    Raises:
        ValueError: if one of them is missing or is no map.
    """
    pyramid = _pyramid_of(backbone)
    if not isinstance(pyramid, dict) or not {"P3", "P4", "P5"} <= pyramid.keys():
        found = sorted(pyramid) if isinstance(pyramid, dict) else "no dict of feature maps"
        raise ValueError(
            "`backbone` must be a model with `pyramid_outputs` 'P3', 'P4' and 'P5', or such a dict. "
            f"Received: {type(backbone).__name__} with {found}"
        )
    maps = {level: pyramid[f"P{level}"] for level in (3, 4, 5)}
    axis = 3 if data_format == "channels_last" else 1
    for level, x in maps.items():
        if not keras.backend.is_keras_tensor(x) or len(x.shape) != 4:
            raise ValueError(f"The maps of `backbone` must be KerasTensors of four axes. Received: P{level}={x!r}")
        if x.shape[axis] is None or x.shape[axis] < 2:
            raise ValueError(
                f"The maps of `backbone` must have a known number of channels, at least 2, laid out as {data_format}. "
                f"Received: P{level} of shape {x.shape}"
            )
    return maps


def restorable(backbone):
    """The backbone, or a model of the same maps, whose config brings the maps back.

    Args:
        backbone: model that `maps_of` takes.

    Returns:
        The backbone if its class has the property `pyramid_outputs`. Set on one
        model alone, it is not in its config: then a model whose output it is.
    """
    if hasattr(type(backbone), "pyramid_outputs"):
        return backbone
    pyramid = _pyramid_of(backbone)
    maps = {level: pyramid[level] for level in ("P3", "P4", "P5")}
    return keras.Model(backbone.input, maps, name=backbone.name)


def _pyramid_of(backbone):
    pyramid = getattr(backbone, "pyramid_outputs", None)
    if pyramid is None and isinstance(backbone, keras.Model):
        # A subclassed model has none.
        return getattr(backbone, "output", None)
    return pyramid
