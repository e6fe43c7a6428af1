"""From a photograph to the image that weights were evaluated on."""

import dataclasses
import math
import numbers

import keras
import numpy as np

# Of ImageNet's RGB images in [0, 1], as all four papers normalise.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

# The kernel of Pillow's bicubic filter, which the published accuracies were measured with.
BICUBIC_A = -0.5


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How the images are made that weights expect.

    The image is resized (bicubic, antialiased) until it covers the image size
    divided by `crop`, and its centre is cut out; a square takes the shorter side
    to `round(image_size / crop)`.

    Args:
        image_size: int or pair of int. Height and width of the result. Defaults to `224`.
        crop: float in `(0, 1]`. Share of the resized side that is kept. Defaults to `0.875`.
        mean: tuple of three float. Mean of the channels of images in `[0, 1]`.
            Defaults to ImageNet's.
        std: tuple of three float. Their standard deviation. Defaults to ImageNet's.

    Raises:
        ValueError: if an argument has none of these values.

    Example:

    >>> Preprocessing(224, crop=0.9).resized_size
    (249, 249)
    """

    image_size: tuple = (224, 224)
    crop: float = 0.875
    mean: tuple = IMAGE_MEAN
    std: tuple = IMAGE_STD

    def __post_init__(self):
        sizes = self.image_size if isinstance(self.image_size, (tuple, list)) else (self.image_size,) * 2
        if len(sizes) != 2 or not all(_is_number(size, numbers.Integral) and size > 0 for size in sizes):
            raise ValueError(f"`image_size` must be a positive int or a pair. Received: image_size={self.image_size!r}")
        if not _is_number(self.crop) or not 0 < self.crop <= 1:
            raise ValueError(f"`crop` must be in (0, 1]. Received: crop={self.crop!r}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            listed = isinstance(values, (tuple, list)) and len(values) == 3 and all(map(_is_number, values))
            if not listed or (name == "std" and min(values) <= 0):
                raise ValueError(f"`{name}` must be three {'positive ' * (name == 'std')}numbers. Received: {values!r}")
            object.__setattr__(self, name, tuple(values))
        object.__setattr__(self, "image_size", tuple(sizes))

    @property
    def resized_size(self):
        """The height and width that the resized image has at least."""
        return tuple(round(size / self.crop) for size in self.image_size)


def check_statistics(preprocessing):
    """Sees to it that models, which normalise by ImageNet's statistics, do what weights expect.

    Args:
        preprocessing: `Preprocessing`.

    Raises:
        ValueError: if the statistics are others.
    """
    if (preprocessing.mean, preprocessing.std) != (IMAGE_MEAN, IMAGE_STD):
        raise ValueError(
            "The model normalises images by the mean and standard deviation of ImageNet. For others build it with "
            "`include_preprocessing=False`, and give it `preprocess_input(images, preset, normalize=True)`. "
            f"Received: mean={preprocessing.mean}, std={preprocessing.std}"
        )


def preprocess_images(images, preprocessing, normalize=False, data_format=None):
    """See `keras_dualstream.preprocess_input`; `preprocessing` is a `Preprocessing`."""
    data_format = data_format or keras.config.image_data_format()
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            f"`data_format` must be 'channels_last' or 'channels_first'. Received: data_format={data_format!r}"
        )
    several = isinstance(images, (list, tuple)) or len(images.shape) == 4
    results = []
    for image in images if several else [images]:
        image = _to_pixels(image, data_format)
        image = _resize_and_crop(image, preprocessing)
        if normalize:
            image = (image / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
        results.append(np.moveaxis(image, -1, 0) if data_format == "channels_first" else image)
    if not results:
        raise ValueError("`images` must have at least one image. Received: none")
    return np.stack(results).astype("float32") if several else results[0].astype("float32")


def _is_number(value, kind=numbers.Real):
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def _to_pixels(image, data_format):
    """An image as a float32 array `(height, width, 3)`."""
    image = keras.ops.convert_to_numpy(image)
    pixels = np.moveaxis(image, 0, -1) if data_format == "channels_first" and image.ndim == 3 else image
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        order = "(3, height, width)" if data_format == "channels_first" else "(height, width, 3)"
        raise ValueError(f"Images must be RGB, {order}. Received: an image of shape {image.shape}")
    return pixels.astype("float32")


def _resize_and_crop(image, preprocessing):
    """The middle of the image, resized as Pillow does it: along the rows, then the columns, rounding after each."""
    size, least = image.shape[:2], preprocessing.resized_size
    # The side that needs more of it gets exactly there; PyTorch cuts off what is left of the other one.
    fixed = 0 if least[0] * size[1] >= least[1] * size[0] else 1
    resized = [max(least[axis], size[axis] * least[fixed] // size[fixed]) for axis in (0, 1)]
    for axis in (1, 0):
        kept = preprocessing.image_size[axis]
        first = round((resized[axis] - kept) / 2)
        image = _combined(image, axis, _bicubic_matrix(size[axis], resized[axis])[first : first + kept])
    return image


def _combined(image, axis, matrix):
    """The matrix applied along an axis of the image; a line reads few others, so that a product would waste most."""
    lines, combined = np.moveaxis(image, axis, 0), []
    for weights in matrix:
        first, last = np.flatnonzero(weights)[[0, -1]]
        combined.append(np.tensordot(weights[first : last + 1], lines[first : last + 1].astype("float64"), 1))
    return np.clip(np.floor(np.moveaxis(np.stack(combined), 0, axis) + 0.5), 0, 255)


def _bicubic_matrix(size, new_size):
    """`(new_size, size)` weights of an antialiased bicubic resize: the kernel is as wide as the new pixels."""
    scale = size / new_size
    centres = (np.arange(new_size) + 0.5) * scale
    distance = np.abs(centres[:, None] - (np.arange(size) + 0.5)) / max(scale, 1)
    a = BICUBIC_A
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    # Pillow's precision; sums of such products with whole numbers are exact in float64.
    return np.rint(weights / weights.sum(axis=1, keepdims=True) * 2**22) / 2**22
