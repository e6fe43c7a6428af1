"""What `weights=` can mean."""

import os

from keras_dualstream.presets.folder import read_preset

# Where the published ImageNet-1K checkpoints are announced.
PUBLISHED = {
    "DFvT": "https://github.com/ginobilinie/DFvT",
    "DSNet": "https://github.com/SteveTsui/DS-Net",
    "DualViT": "https://github.com/YehLi/ImageNetModel",
    "TransXNet": "https://github.com/LMMMEng/TransXNet",
}


def find_weights(weights, variant):
    """The weights file that the argument `weights` of a builder means.

    Args:
        weights: `None`, the path of a `.weights.h5` file or of a preset folder.
        variant: str. Name of the builder, for the error.

    Returns:
        The path of a `.weights.h5` file, or `None`.

    Raises:
        ValueError: if there is no such file, saying what to do.
    """
    if weights is None:
        return None
    if weights == "imagenet":
        raise ValueError(
            f"The ImageNet weights of {variant} are published as a PyTorch checkpoint, to be converted once. Get it by "
            f"the links at {PUBLISHED[variant[:-1]]} and load it with "
            "`keras_dualstream.conversion.load_checkpoint(model, path)`. "
            "Received: weights='imagenet'"
        )
    if isinstance(weights, (str, os.PathLike)):
        path = os.fspath(weights)
        if os.path.isdir(path):
            return read_preset(path)[1]
        if path.endswith(".weights.h5") and os.path.isfile(path):
            return path
    raise ValueError(
        "`weights` must be None, the path of an existing `.weights.h5` file, or a preset folder made by "
        f"`save_to_preset`. Received: weights={weights!r}"
    )
