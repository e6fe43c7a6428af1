"""From the user's images to a normalised channels-last tensor."""

import dataclasses
import numbers

import keras

from keras_dualstream.layers.float64 import Normalization
from keras_dualstream.presets.preprocessing import IMAGE_MEAN
from keras_dualstream.presets.preprocessing import IMAGE_STD


@dataclasses.dataclass
class ImageOptions:
    """The arguments that every backbone shares, checked and made definite.

    Args:
        image_shape: tuple of three. Shape of one image in the order of
            `data_format`; height and width may be `None`. Defaults to
            `(None, None, 3)`.
        input_tensor: KerasTensor to use as images. Defaults to `None`.
        include_preprocessing: bool. Whether images are RGB in `[0, 255]` (`True`)
            or already normalised (`False`). Defaults to `True`.
        pooling: `None` for the last feature map as output, `"avg"` or `"max"`
            for its average or maximum. Defaults to `None`.
        data_format: `"channels_last"` or `"channels_first"`, of images and
            outputs. Defaults to `keras.config.image_data_format()`.
        dtype: dtype or dtype policy of the layers. Defaults to the global policy.

    Raises:
        ValueError: if an argument has none of these values.
    """

    image_shape: tuple = None
    input_tensor: object = None
    include_preprocessing: bool = True
    pooling: str = None
    data_format: str = None
    dtype: object = None

    def __post_init__(self):
        self.dtype = keras.dtype_policies.get(self.dtype)
        self.data_format = self.data_format or keras.config.image_data_format()
        if self.data_format not in ("channels_last", "channels_first"):
            raise ValueError(
                f"`data_format` must be 'channels_last' or 'channels_first'. Received: data_format={self.data_format!r}"
            )
        check_pooling(self.pooling)
        if self.image_shape is None:
            self.image_shape = (None, None, 3) if self.data_format == "channels_last" else (3, None, None)
        if self.input_tensor is not None:
            if not keras.backend.is_keras_tensor(self.input_tensor):
                raise ValueError(
                    "`input_tensor` must be a KerasTensor, such as `keras.Input(...)` returns. "
                    f"Received: input_tensor={self.input_tensor!r}"
                )
            self.image_shape = self.input_tensor.shape[1:]
        if not isinstance(self.image_shape, (tuple, list)):
            raise ValueError(f"The shape of the images must be a tuple of three. Received: {self.image_shape!r}")
        self.image_shape = tuple(self.image_shape)

    def begin(self, minimum_size):
        """The first layers of a backbone.

        Args:
            minimum_size: int. Smallest height and width the network can take.

        Returns:
            The KerasTensor of the images as they come, and the normalised one
            `(batch, height, width, channels)`.
        """
        channels = _check_image_shape(self.image_shape, self.data_format, minimum_size)
        images = self.input_tensor
        if images is None:
            # float32 under a mixed policy, float64 under float64.
            images = keras.Input(self.image_shape, dtype=self.dtype.variable_dtype, name="images")
        x = images
        if self.data_format == "channels_first":
            x = keras.layers.Permute((2, 3, 1), dtype=self.dtype, name="channels_last")(x)
        if self.include_preprocessing:
            mean, variance = _statistics(channels)
            x = Normalization(axis=-1, mean=mean, variance=variance, dtype=self.dtype, name="normalize")(x)
        return images, x


def check_pooling(pooling):
    """Raises a `ValueError` unless `pooling` is `None`, `"avg"` or `"max"`."""
    if pooling not in (None, "avg", "max"):
        raise ValueError(f"`pooling` must be None, 'avg' or 'max'. Received: pooling={pooling!r}")


def _check_image_shape(image_shape, data_format, minimum_size):
    order = "(height, width, channels)" if data_format == "channels_last" else "(channels, height, width)"
    if len(image_shape) != 3:
        raise ValueError(f"The shape of the images must be {order}. Received: {image_shape}")
    *sizes, channels = image_shape if data_format == "channels_last" else (*image_shape[1:], image_shape[0])
    if not isinstance(channels, numbers.Integral) or channels < 1:
        raise ValueError(
            f"The shape of the images must be {order} with a known number of channels. Received: {image_shape}"
        )
    if any(size is not None and size < minimum_size for size in sizes):
        raise ValueError(
            f"The shape of the images must be {order} with a height and width of at least {minimum_size} pixels, "
            f"or None for any. Received: {image_shape}"
        )
    return channels


def _statistics(channels):
    """Mean and variance of images in [0, 255]; one channel takes ImageNet's averages, others repeat them in turn."""
    if channels == 1:
        mean, std = [sum(IMAGE_MEAN) / 3], [sum(IMAGE_STD) / 3]
    else:
        mean, std = ([values[channel % 3] for channel in range(channels)] for values in (IMAGE_MEAN, IMAGE_STD))
    return [255 * value for value in mean], [(255 * value) ** 2 for value in std]
