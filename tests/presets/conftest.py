"""An empty cache, and a server that has the published files."""

import dataclasses
import urllib.request

import pytest
from file_server import serving

from keras_dualstream.presets.catalogue import PRESETS
from keras_dualstream.presets.download import OFFLINE
from keras_dualstream.presets.weights import MIRROR


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The folder of the cache, which is not there yet; nothing of the user's environment matters."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    for name in (*OFFLINE, MIRROR):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    # It remembers the proxies.
    monkeypatch.setattr(urllib.request, "_opener", None)
    return tmp_path / "home" / "models" / "keras_dualstream"


@pytest.fixture
def server():
    """A `FileServer`."""
    with serving() as server:
        yield server


@pytest.fixture
def publish(server, monkeypatch):
    """Has a preset's file on the server, in place of where its authors have it."""

    def publish(name, content, **changes):
        url = server.add(f"/download/{name}", content)
        monkeypatch.setitem(PRESETS, name, dataclasses.replace(PRESETS[name], url=url, **changes))
        return url

    return publish
