"""What `weights=` and `from_preset` take ends up in the model."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
from file_server import answer
from file_server import redirect
from helpers import TINY_TRANSXNET
from helpers import one_backend
from helpers import randomize
from helpers import tiny_dfvt
from helpers import tiny_dsnet
from helpers import tiny_model
from helpers import tiny_transxnet
from helpers import to_numpy
from published_files import write_published

import keras_dualstream
from keras_dualstream.conversion import to_torch_state_dict
from keras_dualstream.presets.catalogue import PRESETS
from keras_dualstream.presets.catalogue import SUFFIXES
from keras_dualstream.presets.checksums import sha256_of
from keras_dualstream.presets.folder import PresetInfo
from keras_dualstream.presets.folder import read_preset
from keras_dualstream.presets.folder import write_preset

TransXNetBackbone = keras_dualstream.TransXNetBackbone
SMALL = {name: value for name, value in TINY_TRANSXNET.items() if name != "pretraining_size"}


@pytest.fixture(scope="module")
def source():
    """A small TransXNet whose weights are to be found again."""
    return randomize(tiny_transxnet(), seed=2)


def assert_same(model, source):
    found, expected = (
        {weight.path: weight for weight in each.weights if "seed" not in weight.path} for each in (model, source)
    )
    assert found.keys() <= expected.keys()
    for path, weight in found.items():
        np.testing.assert_array_equal(to_numpy(weight), to_numpy(expected[path]), err_msg=path)


def test_imagenet_ends_with_the_published_weights_in_the_model(source, publish, server, tmp_path):
    content = write_published(tmp_path / "transx-t.pth.tar", "transxnet_t_224", source).read_bytes()
    publish("transxnet_t_224", redirect("/elsewhere"))
    server.add("/elsewhere", content)
    assert_same(tiny_transxnet(weights="imagenet"), source)
    server.files.clear()
    backbone = TransXNetBackbone.from_preset("transxnet_t_224", **TINY_TRANSXNET)
    assert_same(backbone, source)
    assert len(server.requests) == 2


@one_backend
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (tiny_dfvt, "dfvt_t_224"),
        (tiny_dsnet, "ds_net_t_224"),
        (tiny_dsnet, "ds_net_t_224_pytorch"),
    ],
)
def test_every_layout_that_is_downloaded_is_loaded(make, name, publish, tmp_path):
    model = randomize(make(), seed=2)
    publish(name, write_published(tmp_path / "file", name, model).read_bytes())
    assert_same(make(weights=name), model)


@one_backend
def test_what_no_program_can_download_is_loaded_once_it_is_there(cache, tmp_path):
    with pytest.raises(ValueError, match="No program can download") as error:
        tiny_model(weights="imagenet")
    path = cache / "dualvit_s_224.pth"
    assert str(error.value) == (
        "No program can download the checkpoint of DualViTS for 224x224 images ('dualvit_s_224'). Get it by hand at "
        "https://pan.baidu.com/s/1mJapQgFXs3NYnFUCbsgYwQ (access code: nets), and save it as "
        f"'{path}': it is then loaded by itself."
    )
    path.write_text("<html>the page in place of the file</html>")
    with pytest.raises(OSError, match="dualvit_s_224.pth' is not used: .* It begins with b'<html>.*Get it by hand at"):
        tiny_model(weights="imagenet")
    model = randomize(tiny_model(), seed=2)
    write_published(path, "dualvit_s_224", model)
    assert_same(tiny_model(weights="imagenet"), model)
    with pytest.raises(ValueError, match="DualViTS for 384x384 .*19efu-TJ0O5o4jIZXSbcNeg.*dualvit_s_384.pth"):
        tiny_model(weights="dualvit_s_384")
    # Recorded when it was first used, as any download.
    write_published(path, "dualvit_s_224", randomize(model))
    with pytest.raises(ValueError, match="is another: its SHA-256 is .* recorded in"):
        tiny_model(weights="imagenet")


@one_backend
def test_a_preset_brings_its_image_size_and_options(publish, tmp_path):
    model = randomize(keras_dualstream.TransXNetB(**SMALL, classes=5, pretraining_size=384), seed=2)
    publish("transxnet_b_384", write_published(tmp_path / "file", "transxnet_b_384", model).read_bytes())
    found = keras_dualstream.TransXNetB(weights="transxnet_b_384", classes=5, **SMALL)
    assert found.input_shape == (None, 384, 384, 3)
    assert_same(found, model)
    assert_same(TransXNetBackbone.from_preset("transxnet_b_384", **SMALL), model)
    with pytest.warns(UserWarning, match="position tables were resized"):
        keras_dualstream.TransXNetB(weights="transxnet_b_384", classes=5, pretraining_size=32, **SMALL)


@one_backend
def test_published_weights_go_with_any_head_and_any_images(source, publish, server, tmp_path):
    with pytest.raises(ValueError, match="`classifier_activation` must be None or 'softmax'"):
        tiny_transxnet(weights="imagenet", classifier_activation="relu")
    assert server.requests == []
    publish("transxnet_t_224", write_published(tmp_path / "file", "transxnet_t_224", source).read_bytes())
    with pytest.warns(UserWarning, match="the 5 classes are not the model's"):
        model = tiny_transxnet(weights="imagenet", classes=3)
    assert_same(model.backbone, source)
    headless = keras_dualstream.TransXNetT(include_top=False, weights="imagenet", pooling="avg", **TINY_TRANSXNET)
    assert headless.input_shape == (None, None, None, 3)
    assert_same(headless, source)
    with pytest.warns(UserWarning, match="were made to fit 1"):
        tiny_transxnet(weights="imagenet", input_shape=(32, 32, 1))


@one_backend
def test_new_weights_of_a_preset_need_no_download(server):
    backbone = TransXNetBackbone.from_preset("transxnet_b_384", load_weights=False, depths=(1, 1, 1, 1))
    config = backbone.get_config()
    assert (config["embed_dims"], config["pretraining_size"]) == ((76, 152, 336, 672), (384, 384))
    assert server.requests == []


@one_backend
def test_a_preset_of_another_variant_is_refused():
    message = "The preset 'transxnet_s_224' is of TransXNetS. Presets of TransXNetT: transxnet_t_224. Received"
    with pytest.raises(ValueError, match=message):
        tiny_transxnet(weights="transxnet_s_224")
    with pytest.raises(ValueError, match="'dfvt_t_224' is of DFvTT. Presets of TransXNetT, TransXNetS, TransXNetB: "):
        TransXNetBackbone.from_preset("dfvt_t_224")
    with pytest.raises(ValueError, match="Weights must be None, 'imagenet' .of a builder.* Received: 'imagenet'"):
        TransXNetBackbone.from_preset("imagenet")


@one_backend
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz", ".weights.h5"])
def test_a_path_or_an_address_is_loaded(suffix, source, server, tmp_path):
    path = tmp_path / f"file{suffix}"
    if suffix == ".weights.h5":
        source.save_weights(path)
    elif suffix == ".pth":
        write_published(path, "transxnet_t_224", source)
    elif suffix == ".npz":
        np.savez(path, **to_torch_state_dict(source))
    else:
        from safetensors.numpy import save_file

        save_file(to_torch_state_dict(source), path)
    address = server.add(f"/file{suffix}", path.read_bytes())
    assert_same(tiny_transxnet(weights=path), source)
    assert_same(tiny_transxnet(weights=address), source)
    for weights in (str(path), address):
        assert_same(TransXNetBackbone.from_preset(weights, **TINY_TRANSXNET), source)
    assert server.requests == [f"/file{suffix}"]


@one_backend
def test_a_folder_brings_what_the_variant_leaves_open(tmp_path):
    model = randomize(tiny_transxnet(position_encoding=False, kernel_size=5, drop_path_rate=0.3), seed=2)
    names = ["a", "b", "c", "d", "e"]
    preprocessing = keras_dualstream.Preprocessing((32, 40), crop=1.0)
    model.save_to_preset(tmp_path / "preset", preprocessing, names, provenance="my photos", licence="MIT")
    _, _, info = read_preset(tmp_path / "preset")
    assert info == PresetInfo(preprocessing, tuple(names), "my photos", "MIT")
    row = {name: TINY_TRANSXNET[name] for name in ("embed_dims", "num_heads", "depths", "mlp_ratios")}
    found = keras_dualstream.TransXNetT(weights=tmp_path / "preset", classes=5, include_preprocessing=False, **row)
    assert_same(found, model)
    config = found.backbone.get_config()
    assert (config["position_encoding"], config["kernel_size"], config["pretraining_size"]) == (False, 5, (48, 48))
    # The variant's own, and the model's.
    assert (config["drop_path_rate"], config["include_preprocessing"]) == (0.1, False)
    assert found.input_shape == (None, 32, 40, 3)
    assert_same(TransXNetBackbone.from_preset(tmp_path / "preset"), model)
    with pytest.raises(ValueError, match="holds a TransXNetBackbone; load it with"):
        keras_dualstream.DFvTT(weights=tmp_path / "preset")


@one_backend
def test_what_is_said_about_a_preset_is_checked(source, tmp_path):
    for options, message in [
        (dict(class_names=["a"]), "`class_names` must have 5 names. Received: 1"),
        (dict(class_names=range(5)), "`class_names` must be a list of str"),
        (dict(licence=3), "`licence` must be a str, or None. Received: licence=3"),
        (dict(provenance=["x"]), "`provenance` must be a str"),
        (dict(preprocessing=0.9), "`preprocessing` must be a `Preprocessing`. Received: 0.9"),
    ]:
        with pytest.raises(ValueError, match=message):
            source.save_to_preset(tmp_path / "preset", **options)
    assert not os.path.exists(tmp_path / "preset")
    source.save_to_preset(tmp_path / "preset")
    info = read_preset(tmp_path / "preset")[2]
    assert info == PresetInfo(keras_dualstream.Preprocessing((32, 40)))
    TransXNetBackbone(**TINY_TRANSXNET).save_to_preset(tmp_path / "preset")
    assert read_preset(tmp_path / "preset")[2] == PresetInfo()


@one_backend
def test_a_save_that_fails_leaves_the_old_preset(source, tmp_path, monkeypatch):
    source.save_to_preset(tmp_path / "preset")
    before = {path.name: path.read_bytes() for path in (tmp_path / "preset").iterdir()}

    def full(path):
        pathlib.Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_preset(tmp_path / "preset", {}, full, PresetInfo())
    assert {path.name: path.read_bytes() for path in (tmp_path / "preset").iterdir()} == before


@pytest.fixture
def mirror(source, tmp_path):
    """An organisation's folder with one preset."""
    source.save_to_preset(tmp_path / "mirror" / "transxnet_t_224")
    return tmp_path / "mirror"


@one_backend
def test_a_mirror_in_a_folder_comes_first(mirror, source, publish, monkeypatch, server, cache):
    publish("transxnet_t_224", b"not asked for")
    monkeypatch.setenv("KERAS_DUALSTREAM_MIRROR", str(mirror))
    assert_same(tiny_transxnet(weights="imagenet"), source)
    assert_same(TransXNetBackbone.from_preset("transxnet_t_224"), source)
    assert server.requests == []
    assert not cache.exists()


@one_backend
def test_a_mirror_is_adapted_as_the_published_file_is(mirror, source, tmp_path, monkeypatch):
    checkpoint = tmp_path / "published.npz"
    np.savez(checkpoint, **keras_dualstream.conversion.to_torch_state_dict(source))
    monkeypatch.setenv("KERAS_DUALSTREAM_MIRROR", str(mirror))
    for options in (dict(input_shape=(32, 32, 1)), dict(pretraining_size=64)):
        with pytest.warns(UserWarning, match="adapted|resized|fit"):
            expected = tiny_transxnet(weights=str(checkpoint), **options)
        with pytest.warns(UserWarning, match="adapted|resized|fit"):
            assert_same(tiny_transxnet(weights="imagenet", **options), expected)
    with pytest.raises(ValueError, match="missing in the checkpoint"):
        tiny_transxnet(weights="imagenet", depths=(1, 2, 1, 1))


@one_backend
def test_weights_of_other_statistics_are_not_given_to_a_model_that_normalises(tmp_path):
    centred = keras_dualstream.Preprocessing((32, 40), mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
    model = tiny_transxnet(include_preprocessing=False)
    model.save_to_preset(tmp_path / "preset", centred)
    message = r"normalises images by .* of ImageNet.*include_preprocessing=False.*Received: mean=\(0.5, 0.5, 0.5\)"
    with pytest.raises(ValueError, match=message):
        tiny_transxnet(weights=tmp_path / "preset")
    assert_same(tiny_transxnet(weights=tmp_path / "preset", include_preprocessing=False), model)
    with pytest.raises(ValueError, match=message):
        tiny_transxnet().save_to_preset(tmp_path / "other", centred)
    assert not os.path.exists(tmp_path / "other")


@one_backend
def test_a_preset_has_no_optimizer(source, tmp_path):
    model = tiny_transxnet()
    model.compile(keras.optimizers.AdamW())
    model.optimizer.build(model.trainable_variables)
    model.save_to_preset(tmp_path / "preset")
    with h5py.File(tmp_path / "preset" / "model.weights.h5") as file:
        assert "optimizer" not in file


@one_backend
def test_a_mirror_whose_preset_changes_is_refused(mirror, source, server, monkeypatch, cache):
    server.add_folder("/m/transxnet_t_224", mirror / "transxnet_t_224")
    monkeypatch.setenv("KERAS_DUALSTREAM_MIRROR", server.url + "/m")
    tiny_transxnet(weights="imagenet")
    (folder,) = cache.glob("url-*/transxnet_t_224")
    shutil.rmtree(folder)
    source.save_to_preset(mirror / "transxnet_t_224", licence="another")
    server.add_folder("/m/transxnet_t_224", mirror / "transxnet_t_224")
    with pytest.raises(ValueError, match="The preset at .* is another: its SHA-256 is .* If the change is meant"):
        tiny_transxnet(weights="imagenet")
    assert not folder.exists()


@one_backend
def test_a_mirror_on_a_server_is_copied_once(mirror, source, server, monkeypatch, cache):
    server.add_folder("/m/transxnet_t_224", mirror / "transxnet_t_224")
    monkeypatch.setenv("KERAS_DUALSTREAM_MIRROR", server.url + "/m/")
    assert_same(tiny_transxnet(weights="transxnet_t_224"), source)
    files = ("SHA256SUMS", "config.json", "preset.json", "model.weights.h5")
    assert server.requests == [f"/m/transxnet_t_224/{name}" for name in files]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_same(tiny_transxnet(weights="imagenet"), source)
    assert len(server.requests) == 4
    # Verified at every load.
    (folder,) = cache.glob("url-*/transxnet_t_224")
    (folder / "preset.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not the one that was saved: .*KERAS_DUALSTREAM_MIRROR is 'http"):
        tiny_transxnet(weights="imagenet")


@one_backend
def test_a_mirror_that_fails_leaves_nothing(mirror, server, monkeypatch, cache):
    address = server.add_folder("/m/transxnet_t_224", mirror / "transxnet_t_224")
    monkeypatch.setenv("KERAS_DUALSTREAM_MIRROR", server.url + "/m")
    server.files["/m/transxnet_t_224/config.json"] += b" "
    with pytest.raises(ValueError, match="`config.json` of the preset folder .* is not the one that was saved"):
        tiny_transxnet(weights="imagenet")
    del server.files["/m/transxnet_t_224/model.weights.h5"]
    with pytest.raises(OSError, match=f"{address}/model.weights.h5 could not be downloaded: 404 -- Not Found"):
        tiny_transxnet(weights="imagenet")
    server.files.clear()
    with pytest.raises(
        OSError, match="SHA256SUMS could not be .*KERAS_DUALSTREAM_MIRROR is .* come from their authors"
    ):
        tiny_transxnet(weights="imagenet")
    assert [path.name for path in cache.rglob("*") if not path.name.startswith("url-")] == []
    monkeypatch.setenv("KERAS_DUALSTREAM_MIRROR", str(mirror))
    with pytest.raises(
        ValueError, match="must be an existing folder. Received: .*dfvt_t_224'.*KERAS_DUALSTREAM_MIRROR"
    ):
        tiny_dfvt(weights="imagenet")


@one_backend
def test_the_hub_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'keras_dualstream\[hub\]'. Received: 'hf://someone/weights'"):
        tiny_transxnet(weights="hf://someone/weights")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def add_repository(server, repository, folder):
    """Has a folder on the server where the Hugging Face Hub has a repository."""
    tree = []
    for path in folder.iterdir():
        content, blob = path.read_bytes(), sha256_of(path)[:40]
        tree.append({"type": "file", "path": path.name, "size": len(content), "oid": blob})
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{blob}"'}
        server.add(f"/{repository}/resolve/{COMMIT}/{path.name}", answer(content, headers))
    for address, content in {
        "revision/main": {"id": repository, "sha": COMMIT},
        "revision/v2": {"id": repository, "sha": COMMIT},
        f"tree/{COMMIT}?recursive=true&expand=false": tree,
    }.items():
        headers = {"Content-Type": "application/json"}
        server.add(f"/api/models/{repository}/{address}", answer(json.dumps(content).encode(), headers))


FROM_THE_HUB = """
import os
from keras_dualstream.presets.weights import find_weights
print(find_weights("hf://someone/weights", ["TransXNetT"]).path)
print(find_weights("hf://someone/weights@v2", ["TransXNetT"]).path)
os.environ["KERAS_DUALSTREAM_OFFLINE"] = "1"
print(find_weights("hf://someone/weights", ["TransXNetT"]).path)
try:
    find_weights("hf://someone/other", ["TransXNetT"])
except OSError as error:
    print(error)
"""


@one_backend
def test_a_repository_of_the_hub_is_loaded(server, source, tmp_path):
    """In a process of its own, as the Hub's package reads its environment when it is imported."""
    pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")
    source.save_to_preset(tmp_path / "preset")
    (tmp_path / "preset" / "README.md").write_text("Not asked for.")
    add_repository(server, "someone/weights", tmp_path / "preset")
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "hub")}
    process = subprocess.run([sys.executable, "-c", FROM_THE_HUB], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    first, second, third, error = process.stdout.splitlines()
    assert first == second == third
    assert first.startswith(str(tmp_path / "hub"))
    assert_same(tiny_transxnet(weights=os.path.dirname(first)), source)
    assert error.startswith("hf://someone/other could not be downloaded: Cannot find an appropriate cached snapshot")
    assert not any("README" in path for path in server.requests)


@one_backend
def test_every_builder_has_published_weights():
    first = {row.variant: name for name, row in reversed(PRESETS.items())}
    assert len(first) == 12
    for variant, name in first.items():
        assert callable(getattr(keras_dualstream, variant))
        assert PRESETS[name].resolution == 224
        assert name == keras_dualstream.list_presets(f"{name[: name.index('_224')]}_*")[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_of_full_size_is_loaded(name, cache, tmp_path):
    row = PRESETS[name]
    builder = getattr(keras_dualstream, row.variant)
    model = randomize(builder(**row.options), seed=2)
    cache.mkdir(parents=True)
    write_published(cache / f"{name}{SUFFIXES[row.format]}", name, model)
    found = builder(weights=name)
    assert found.input_shape == (None, row.resolution, row.resolution, 3)
    assert_same(found, model)
