"""What `weights=` and a preset can mean."""

import contextlib
import dataclasses
import os

from keras_dualstream.presets.catalogue import PRESETS
from keras_dualstream.presets.catalogue import SUFFIXES
from keras_dualstream.presets.catalogue import Published
from keras_dualstream.presets.catalogue import presets_of
from keras_dualstream.presets.download import cache_folder
from keras_dualstream.presets.download import cached_name
from keras_dualstream.presets.download import fetch_file
from keras_dualstream.presets.download import fetch_from_hub
from keras_dualstream.presets.download import fetch_preset
from keras_dualstream.presets.download import name_in
from keras_dualstream.presets.folder import PresetInfo
from keras_dualstream.presets.folder import read_preset

MIRROR = "KERAS_DUALSTREAM_MIRROR"
NO_LICENCE = "none stated, so for your own use only and not to be passed on"


@dataclasses.dataclass(frozen=True)
class Weights:
    """What was found.

    Args:
        path: str. A `.weights.h5` file, or else a checkpoint; `None` where none was asked for.
        config: dict. The serialised backbone of a preset folder. Defaults to `None`.
        published: `Published`, of a name of the catalogue. Defaults to `None`.
        info: `PresetInfo`.
    """

    path: str
    config: dict = None
    published: Published = None
    info: PresetInfo = PresetInfo()

    def check_class(self, class_name):
        """Raises a `ValueError` if they are the weights of another class of backbone.

        Args:
            class_name: str.
        """
        if self.config is not None and self.config["class_name"] != class_name:
            other = self.config["class_name"]
            raise ValueError(
                f"The preset holds a {other}; load it with `{other}.from_preset`. "
                f"Received: preset={os.path.dirname(self.path)!r} for {class_name}"
            )


def find_weights(weights, variants, load=True):
    """Finds weights, downloading them where that is needed.

    Args:
        weights: `"imagenet"` for those of a single variant; a name of
            `list_presets()`; `hf://user/repository`; the `http(s)://` address of a
            file; or the path of a file or preset folder.
        variants: list of str. The names of the builders whose weights they may be.
        load: bool. Whether the weights themselves are wanted; otherwise
            published ones are not downloaded. Defaults to `True`.

    Returns:
        `Weights`.

    Raises:
        ValueError: if there is no such thing, or it is damaged or of another variant.
        OSError: if it cannot be downloaded.
        ImportError: for `hf://` without `huggingface_hub`.
    """
    text = os.fspath(weights) if isinstance(weights, (str, os.PathLike)) else ""
    names = presets_of(variants)
    if weights == "imagenet" and len(variants) == 1:
        text = names[0]
    if text in PRESETS:
        if text not in names:
            raise ValueError(
                f"The preset {text!r} is of {PRESETS[text].variant}. "
                f"Presets of {', '.join(variants)}: {', '.join(names)}. Received: {weights!r}"
            )
        return _published(text, load)
    if text.startswith("hf://"):
        return _in_folder(fetch_from_hub(text))
    if text.startswith(("http://", "https://")):
        return Weights(fetch_file(text, os.path.join(cache_folder(), cached_name(text), name_in(text))))
    if os.path.isdir(text):
        return _in_folder(text)
    if os.path.isfile(text):
        return Weights(text)
    raise ValueError(
        "Weights must be None, 'imagenet' (of a builder), the name of a preset, `hf://user/repository`, the "
        "`https://` address of a file, or the path of an existing `.weights.h5` file, checkpoint or preset folder. "
        f"Presets of {', '.join(variants)}: {', '.join(names)}. Received: {weights!r}"
    )


def find_info(preset):
    """What is known about the weights of a preset.

    Args:
        preset: `None`, a name of `list_presets()`, the name of a builder for
            what its `weights="imagenet"` are, a preset folder, or `hf://user/repository`.

    Returns:
        `PresetInfo`.

    Raises:
        ValueError: if it is nothing of these, or damaged.
    """
    if preset is None:
        return PresetInfo()
    variants = list(dict.fromkeys(row.variant for row in PRESETS.values()))
    if preset in variants:
        preset = presets_of([preset])[0]
    return find_weights(preset, variants, load=False).info


def _in_folder(folder):
    config, path, info = read_preset(folder)
    return Weights(path, config=config, info=info)


def _published(name, load):
    row = PRESETS[name]
    info = PresetInfo(row.preprocessing, provenance=row.url or row.page, licence=row.licence)
    if not load:
        return Weights(None, published=row, info=info)
    mirror = os.environ.get(MIRROR)
    if mirror:
        return dataclasses.replace(_of_mirror(mirror, name), published=row)
    path = os.path.join(cache_folder(), name + SUFFIXES[row.format])
    access = f" ({row.access})" if row.access else ""
    by_hand = f"Get it by hand at {row.page}{access}, and save it as {path!r}: it is then loaded by itself."
    if row.url is None and not os.path.isfile(path):
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        raise ValueError(
            f"No program can download the checkpoint of {row.variant} for {row.resolution}x{row.resolution} images "
            f"({name!r}). {by_hand}"
        )
    if not os.path.isfile(path):
        print(f"{name}: weights of {row.page}, licence: {row.licence or NO_LICENCE}")
    try:
        return Weights(fetch_file(row.url, path, row.sha256), published=row, info=info)
    except OSError as error:
        raise OSError(f"{error} {by_hand}") from error


def _of_mirror(mirror, name):
    """The preset of an organisation's own copies."""
    try:
        if not mirror.startswith(("http://", "https://")):
            return _in_folder(os.path.join(mirror, name))
        folder = os.path.join(cache_folder(), cached_name(mirror), name)
        return _in_folder(fetch_preset(f"{mirror.rstrip('/')}/{name}", folder))
    except (OSError, ValueError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(
            f"{error} (The environment variable {MIRROR} is {mirror!r}; without it, weights come from their authors.)"
        ) from error
