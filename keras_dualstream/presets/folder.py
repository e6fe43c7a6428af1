"""A preset folder: a backbone's configuration, its weights, and what is known about them."""

import dataclasses
import json
import os
import tempfile

from keras_dualstream.presets.checksums import SUMS_FILE
from keras_dualstream.presets.checksums import check_sums
from keras_dualstream.presets.checksums import sha256_of
from keras_dualstream.presets.checksums import write_sums
from keras_dualstream.presets.preprocessing import Preprocessing

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.weights.h5"
INFO_FILE = "preset.json"
# The checksums come first where files are fetched, and last where they are written.
PRESET_FILES = (SUMS_FILE, CONFIG_FILE, INFO_FILE, WEIGHTS_FILE)


@dataclasses.dataclass(frozen=True)
class PresetInfo:
    """What a preset says about its weights.

    Args:
        preprocessing: `Preprocessing` of the images. Defaults to that of ImageNet at 224×224.
        class_names: tuple of str in the order of the classes; `None` for those
            of ImageNet-1K, or where there are no classes. Defaults to `None`.
        provenance: str. Where the weights come from. Defaults to `None`.
        licence: str. What allows to use them; `None` for not stated. Defaults to `None`.

    Raises:
        ValueError: if an argument has none of these types.
    """

    preprocessing: Preprocessing = Preprocessing()
    class_names: tuple = None
    provenance: str = None
    licence: str = None

    def __post_init__(self):
        if not isinstance(self.preprocessing, Preprocessing):
            raise ValueError(f"`preprocessing` must be a `Preprocessing`. Received: {self.preprocessing!r}")
        names = self.class_names
        if names is not None:
            if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"`class_names` must be a list of str, or None. Received: class_names={names!r}")
            object.__setattr__(self, "class_names", tuple(names))
        for name in ("provenance", "licence"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise ValueError(f"`{name}` must be a str, or None. Received: {name}={getattr(self, name)!r}")


def write_file(path, write):
    """Calls `write(temporary_path)` and renames the result to `path`.

    Whatever happens in between, `path` holds either what it held or all of the new content.

    Args:
        path: str. The file to make or replace.
        write: function of one path. Writes the content; the path ends like `path`.
    """
    path = os.path.abspath(os.fspath(path))
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=os.path.dirname(path)) as folder:
        temporary = os.path.join(folder, os.path.basename(path))
        write(temporary)
        os.replace(temporary, path)


def write_preset(folder, config, save_weights, info):
    """Writes a preset folder.

    All files are written before the first takes its place; one that is caught halfway is refused by `read_preset`.

    Args:
        folder: str. Made if missing; other files in it stay.
        config: dict. The serialised backbone.
        save_weights: function of one path. Saves the weights there.
        info: `PresetInfo`.
    """
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as temporary:
        new = {name: os.path.join(temporary, name) for name in PRESET_FILES}
        save_weights(new[WEIGHTS_FILE])
        _write_json(new[CONFIG_FILE], config)
        _write_json(new[INFO_FILE], dataclasses.asdict(info))
        files = [name for name in PRESET_FILES if name != SUMS_FILE]
        write_sums(new[SUMS_FILE], {name: sha256_of(new[name]) for name in files})
        for name in reversed(PRESET_FILES):
            os.replace(new[name], os.path.join(folder, name))


def read_preset(folder):
    """Reads a preset folder whose files are those that were saved.

    Args:
        folder: str.

    Returns:
        The serialised backbone (dict), the path of the weights, and the `PresetInfo`.

    Raises:
        ValueError: if the folder or one of its files is missing, another than was saved, or unreadable.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"The preset must be an existing folder. Received: {folder!r}")
    for name in PRESET_FILES:
        if not os.path.isfile(os.path.join(folder, name)):
            raise ValueError(
                f"The preset folder {folder!r} has no file `{name}`. "
                f"A folder made by `save_to_preset` holds {', '.join(f'`{name}`' for name in PRESET_FILES)}."
            )
    check_sums(folder, PRESET_FILES[1:])
    path = os.path.join(folder, CONFIG_FILE)
    config = _read_json(path)
    if "class_name" not in config or not isinstance(config.get("config"), dict):
        raise ValueError(f"The preset file {path!r} does not describe a backbone; save the preset again.")
    return config, os.path.join(folder, WEIGHTS_FILE), _read_info(os.path.join(folder, INFO_FILE))


def _read_info(path):
    info = _read_json(path)
    try:
        return PresetInfo(**{**info, "preprocessing": Preprocessing(**info["preprocessing"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The preset file {path!r} does not describe weights. Cause: {error}") from error


def _write_json(path, content):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)


def _read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"The preset file {path!r} cannot be read; save the preset again. Cause: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"The preset file {path!r} must hold a dict; save the preset again.")
    return content
