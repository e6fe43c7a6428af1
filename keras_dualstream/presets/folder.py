"""A preset folder: a backbone's configuration beside its weights."""

import json
import os
import tempfile

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.weights.h5"


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


def write_preset(folder, config, save_weights):
    """Writes a preset folder.

    Args:
        folder: str. Made if missing.
        config: dict. The serialised backbone.
        save_weights: function of one path. Saves the weights there.
    """
    os.makedirs(folder, exist_ok=True)
    write_file(os.path.join(folder, WEIGHTS_FILE), save_weights)
    write_file(os.path.join(folder, CONFIG_FILE), lambda path: _write_json(path, config))


def _write_json(path, content):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)


def read_preset(folder):
    """Reads a preset folder.

    Args:
        folder: str.

    Returns:
        The serialised backbone (dict) and the path of its weights.

    Raises:
        ValueError: if the folder or one of its files is missing or unreadable.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"The preset must be an existing folder. Received: {folder!r}")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not os.path.isfile(os.path.join(folder, name)):
            raise ValueError(
                f"The preset folder {folder!r} has no file `{name}`. "
                f"A folder made by `save_to_preset` holds `{CONFIG_FILE}` and `{WEIGHTS_FILE}`."
            )
    path = os.path.join(folder, CONFIG_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"The preset file {path!r} cannot be read; save the preset again. Cause: {error}") from error
    if not isinstance(config, dict) or "class_name" not in config or not isinstance(config.get("config"), dict):
        raise ValueError(f"The preset file {path!r} does not describe a backbone; save the preset again.")
    return config, os.path.join(folder, WEIGHTS_FILE)
