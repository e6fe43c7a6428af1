"""Layers made of layers that are frozen before they are built."""


def keep_frozen(layer):
    """Hands `trainable=False` on to the parts of a layer, at the end of its `build`.

    Keras freezes the parts that exist when `trainable` is set, which is before
    `build` for a layer made by `from_config` or with `trainable=False`.

    Args:
        layer: a layer whose parts are built.
    """
    if not layer.trainable:
        # By way of True: TensorFlow does nothing when an attribute is set to what it is.
        layer.trainable = True
        layer.trainable = False
