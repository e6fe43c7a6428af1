"""From photographs to what a classifier takes, and from its output to names."""

import os

import keras

from keras_dualstream.presets.download import OFFLINE
from keras_dualstream.presets.download import cache_folder
from keras_dualstream.presets.download import is_offline
from keras_dualstream.presets.preprocessing import Preprocessing
from keras_dualstream.presets.preprocessing import preprocess_images
from keras_dualstream.presets.weights import find_info

IMAGENET_CLASSES = 1000
# Keras' own file, in Keras' own folder.
CLASS_INDEX = "imagenet_class_index.json"


def preprocess_input(images, preset=None, normalize=False, data_format=None):
    """Resizes and crops images as the evaluation of the weights did.

    The resize is bicubic and antialiased, as Pillow's; its result is rounded to
    whole numbers and its centre cut out.

    Args:
        images: array or tensor `(height, width, 3)` or `(batch, height, width, 3)`,
            or a list of images of any sizes; RGB in `[0, 255]`.
        preset: whose preprocessing: a name of `list_presets()`; the name of a
            builder, such as `"TransXNetT"`, for its `weights="imagenet"`; a preset
            folder; `hf://user/repository`; or a `Preprocessing`. Defaults to
            `None`, for 224×224 pixels and a crop of 0.875.
        normalize: bool. `False` leaves images in `[0, 255]`, which models
            normalise themselves; `True` normalises them for a model with
            `include_preprocessing=False`. Defaults to `False`.
        data_format: `"channels_last"` or `"channels_first"`, of the images and of
            the result. Defaults to `keras.config.image_data_format()`.

    Returns:
        float32 array `(height, width, 3)` for one image, otherwise
        `(batch, height, width, 3)`.

    Raises:
        ValueError: if an image is not RGB, or there is no such preset.

    Example:

    >>> import numpy as np
    >>> photo = np.random.default_rng(0).integers(0, 256, (300, 400, 3))
    >>> preprocess_input([photo, photo[:200]], "transxnet_b_384").shape
    (2, 384, 384, 3)
    """
    preprocessing = preset if isinstance(preset, Preprocessing) else find_info(preset).preprocessing
    return preprocess_images(images, preprocessing, normalize, data_format)


def decode_predictions(predictions, top=5, preset=None):
    """The names of the most probable classes.

    The names of ImageNet's classes are those of `keras.applications`, which
    downloads them once.

    Args:
        predictions: array or tensor `(batch, classes)`.
        top: int. How many classes. Defaults to `5`.
        preset: as in `preprocess_input`; its own class names are taken where it
            has any. Defaults to `None`, for ImageNet-1K.

    Returns:
        For each image a list of tuples `(identifier, name, score)`, the best
        first; the preset's own classes have their name as identifier.

    Raises:
        ValueError: if the predictions are not of as many classes as there are names.
        OSError: if the names of ImageNet's classes cannot be downloaded.
    """
    predictions = keras.ops.convert_to_numpy(predictions)
    names = None if preset is None or isinstance(preset, Preprocessing) else find_info(preset).class_names
    classes = IMAGENET_CLASSES if names is None else len(names)
    if predictions.ndim != 2 or predictions.shape[1] != classes:
        raise ValueError(f"`predictions` must be of shape (batch, {classes}). Received: shape {predictions.shape}")
    if names is None:
        return _decode_imagenet(predictions, top)
    return [[(names[i], names[i], row[i]) for i in row.argsort()[::-1][:top]] for row in predictions]


def _decode_imagenet(predictions, top):
    path = os.path.join(os.path.dirname(cache_folder()), CLASS_INDEX)
    try:
        if is_offline() and not os.path.isfile(path):
            raise OSError(f"{' or '.join(OFFLINE)} keeps this process from the network")
        return keras.applications.imagenet_utils.decode_predictions(predictions, top)
    except Exception as error:
        raise OSError(
            f"The names of ImageNet's classes could not be downloaded: {error}. "
            f"Keras looks for them at {path!r} first: put its file `{CLASS_INDEX}` there by hand."
        ) from error
