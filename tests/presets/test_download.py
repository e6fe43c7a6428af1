"""Whatever the network does, a file is whole and verified, or it is not there."""

import contextlib
import errno
import hashlib
import io
import os
import pathlib
import resource
import tempfile
import threading
import time

import keras
import numpy as np
import pytest
from file_server import broken_off
from file_server import redirect
from file_server import status
from helpers import one_backend

from keras_dualstream.conversion import read_checkpoint
from keras_dualstream.presets import download
from keras_dualstream.presets.weights import find_weights

pytestmark = one_backend

BY_HAND = "Get it by hand at https://github.com/LMMMEng/TransXNet/releases, and save it as "


def checkpoint(value=1.0, size=1000):
    """The content of a small file of NumPy, which any preset may be."""
    buffer = io.BytesIO()
    np.savez(buffer, weight=np.full(size, value, "float32"))
    return buffer.getvalue()


def find(weights="imagenet"):
    return find_weights(weights, ["TransXNetT"]).path


def files(cache):
    """The names of everything in the cache."""
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*")) if cache.exists() else []


def fails(cache, *parts, kind=OSError):
    """Fails with a text that has these parts, and leaves nothing."""
    before = files(cache)
    with pytest.raises(kind) as error:
        find()
    for part in parts:
        assert part in str(error.value)
    assert files(cache) == before


def test_a_file_is_downloaded_once_and_recorded(publish, server, cache, capsys):
    url = publish("transxnet_t_224", redirect("/elsewhere"))
    content = checkpoint()
    server.add("/elsewhere", content)
    path = find()
    assert path == str(cache / "transxnet_t_224.pth")
    assert pathlib.Path(path).read_bytes() == content
    digest = hashlib.sha256(content).hexdigest()
    assert (cache / "transxnet_t_224.pth.sha256").read_text() == f"{digest}  transxnet_t_224.pth\n"
    printed = capsys.readouterr().out
    assert "transxnet_t_224: weights of https://github.com/LMMMEng/TransXNet/releases, licence: Apache-2.0" in printed
    assert f"Downloading data from {url}" in printed
    # Keras' progress bar.
    assert f"{len(content)}/{len(content)}" in printed
    assert find("transxnet_t_224") == path
    assert server.requests == ["/download/transxnet_t_224", "/elsewhere"]
    assert capsys.readouterr().out == ""


def test_a_licence_that_grants_nothing_is_shown(publish, capsys):
    publish("dfvt_t_224", checkpoint())
    find_weights("imagenet", ["DFvTT"])
    assert "licence: none stated, so for your own use only and not to be passed on" in capsys.readouterr().out


def test_a_published_checksum_is_verified(publish, cache):
    content = checkpoint()
    publish("transxnet_t_224", content, sha256=hashlib.sha256(content).hexdigest().upper())
    find()
    os.remove(cache / "transxnet_t_224.pth")
    publish("transxnet_t_224", checkpoint(2.0), sha256=hashlib.sha256(content).hexdigest())
    fails(cache, "What was downloaded from http", "is another: its SHA-256 is", "that published is", kind=ValueError)


def test_a_file_that_changed_on_the_server_is_refused(publish, cache):
    publish("transxnet_t_224", checkpoint())
    path = find()
    os.remove(path)
    publish("transxnet_t_224", checkpoint(2.0))
    record = f"recorded in '{path}.sha256' when it was first used is {hashlib.sha256(checkpoint()).hexdigest()}"
    fails(
        cache,
        "What was downloaded from http",
        record,
        f"If the change is meant, delete '{path}.sha256'.",
        kind=ValueError,
    )
    os.remove(f"{path}.sha256")
    assert find() == path


def test_a_file_that_changed_in_the_cache_is_refused(publish, cache, server):
    publish("transxnet_t_224", checkpoint())
    path = find()
    pathlib.Path(path).write_bytes(checkpoint(2.0))
    fails(cache, f"The file '{path}' is another", "To download it again, delete it.", kind=ValueError)
    os.remove(path)
    find()
    pathlib.Path(f"{path}.sha256").write_text("")
    fails(cache, "when it was first used is unreadable", kind=ValueError)


def stalled(content, seconds=1):
    """An answer of which half comes at once, and nothing for some time."""

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2])
        handler.wfile.flush()
        time.sleep(seconds)

    return answer


FAULTS = {
    "broken off": (broken_off(checkpoint()), "retrieval incomplete: got only 2"),
    "broken off, of unknown length": (broken_off(checkpoint(), with_length=False), "is not used: cannot be read: "),
    "not there": (status(404), "could not be downloaded: 404 -- Not Found."),
    "forbidden": (status(403), "could not be downloaded: 403 -- Forbidden."),
    "a gateway without its server": (status(502), "could not be downloaded: 502 -- Bad Gateway."),
    "a proxy that wants a password": (status(407), "could not be downloaded: 407 -- Proxy Authentication Required."),
    "a page of HTML": (b"\n <!DOCTYPE html><title>Log in</title>", "a web page came in place of the file."),
    "a page of HTML of old": (b"<html><body>Quota exceeded</body></html>", "a web page came in place of the file."),
    "another file": (b"hello" * 100, "is no file of PyTorch, safetensors, Paddle or NumPy"),
    "nothing": (b"", "is not used: cannot be read: "),
    "silence": (lambda handler: time.sleep(1), "timed out"),
    "silence in the middle": (stalled(checkpoint()), "timed out"),
    "a circle": (redirect("/download/transxnet_t_224"), "infinite loop"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_leaves_nothing_and_says_what_to_do(name, publish, cache, monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", 0.3)
    content, message = FAULTS[name]
    url = publish("transxnet_t_224", content)
    cache.mkdir(parents=True)
    fails(cache, url, message, f"{BY_HAND}'{cache / 'transxnet_t_224.pth'}': it is then loaded by itself.")
    publish("transxnet_t_224", checkpoint())
    assert os.path.isfile(find())


def test_no_server_is_a_fault_too(publish, server, cache):
    publish("transxnet_t_224", checkpoint())
    server.shutdown()
    server.server_close()
    cache.mkdir(parents=True)
    fails(cache, "could not be downloaded: ", "Connection refused", BY_HAND)


def test_a_proxy_that_refuses_is_named(publish, server, cache, monkeypatch):
    publish("transxnet_t_224", b"")
    address = "http://weights.invalid/transx-t.pth.tar"
    server.add(address, status(407))
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", server.url)
    with pytest.raises(OSError, match=f"{address} could not be downloaded: 407 -- Proxy Authentication Required"):
        find(address)
    assert server.requests == [address]


@contextlib.contextmanager
def largest_file(size):
    """Writing fails behind this many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_in_the_middle_leaves_nothing(publish, cache):
    publish("transxnet_t_224", checkpoint(size=1_000_000))
    cache.mkdir(parents=True)
    with largest_file(2_000_000):
        fails(cache, "could not be downloaded: [Errno 27] File too large.", BY_HAND)
    assert os.path.isfile(find())


def test_ctrl_c_leaves_nothing(publish, cache, monkeypatch):
    def interrupted(name, url, cache_dir, cache_subdir):
        pathlib.Path(cache_dir, cache_subdir, name).write_bytes(b"half")
        raise KeyboardInterrupt

    publish("transxnet_t_224", checkpoint())
    cache.mkdir(parents=True)
    monkeypatch.setattr(keras.utils, "get_file", interrupted)
    fails(cache, kind=KeyboardInterrupt)


def test_two_at_once_both_get_the_whole_file(publish, cache):
    content = checkpoint(size=300_000)
    both = threading.Barrier(2, timeout=20)

    def slowly(handler):
        both.wait()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        for start in range(0, len(content), 100_000):
            handler.wfile.write(content[start : start + 100_000])
            both.wait()

    publish("transxnet_t_224", slowly)
    found = []
    threads = [threading.Thread(target=lambda: found.append(read_checkpoint(find())["weight"])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(array.shape, array.min()) for array in found] == [((300_000,), 1.0)] * 2
    assert files(cache) == ["transxnet_t_224.pth", "transxnet_t_224.pth.sha256"]


@pytest.fixture
def read_only(monkeypatch):
    """A file system that cannot be written to, also for the superuser who may run this."""

    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def make():
        monkeypatch.setattr(tempfile, "mkdtemp", refuse)
        monkeypatch.setattr(os, "makedirs", lambda path, exist_ok=False: None if os.path.isdir(path) else refuse())

    return make


def test_a_read_only_cache_is_read(publish, cache, read_only):
    publish("transxnet_t_224", checkpoint())
    path = find()
    read_only()
    assert find() == path
    # Put there by hand, by whoever made the cache.
    os.remove(f"{path}.sha256")
    assert find() == path


def test_a_read_only_cache_without_the_file_says_so(publish, cache, read_only, server):
    publish("transxnet_t_224", checkpoint())
    read_only()
    fails(cache, f"the cache '{cache}' cannot be written to (Read-only file system)", "KERAS_HOME", BY_HAND)
    assert server.requests == []


def test_a_cache_that_is_no_folder_says_so(publish, monkeypatch, tmp_path, cache):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    publish("transxnet_t_224", checkpoint())
    fails(cache, "cannot be written to (Not a directory)")


@pytest.mark.parametrize("variable", ["KERAS_DUALSTREAM_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_the_cache_is_used_and_nothing_else(variable, publish, server, cache, monkeypatch):
    publish("transxnet_t_224", checkpoint())
    monkeypatch.setenv(variable, "1")
    fails(cache, "is not in the cache", "KERAS_DUALSTREAM_OFFLINE or HF_HUB_OFFLINE keeps this process from", BY_HAND)
    assert server.requests == []
    monkeypatch.setenv(variable, "0")
    path = find()
    monkeypatch.setenv(variable, "true")
    assert find() == path


def test_a_file_of_any_address_is_downloaded_once(server, cache):
    address = server.add("/some/weights.npz?version=2", checkpoint())
    path = find(address)
    assert os.path.basename(path) == "weights.npz"
    assert find(address) == path
    assert server.requests == ["/some/weights.npz?version=2"]
    other = find(server.add("/some/weights.npz?version=3", checkpoint(2.0)))
    assert read_checkpoint(other)["weight"][0] == 2
    assert os.path.basename(find(server.add("/some/..%2f..", checkpoint()))) == "checkpoint"


def test_a_weights_file_of_keras_must_be_one(server):
    address = server.add("/some/model.weights.h5", checkpoint())
    with pytest.raises(OSError, match="What was downloaded from .*model.weights.h5 is not used: .*file signature"):
        find(address)
