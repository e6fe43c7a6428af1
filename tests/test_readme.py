"""The README's snippets run, one after the other, and its numbers are true."""

import argparse
import functools
import pathlib
import re

import keras
import numpy as np
import pytest
from helpers import randomize
from helpers import read_manifest
from published_files import write_published

import keras_dualstream
from keras_dualstream.models import dfvt
from keras_dualstream.models import dsnet
from keras_dualstream.models import dualvit
from keras_dualstream.models import transxnet
from keras_dualstream.presets.catalogue import PRESETS

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def put_in_the_cache(home, monkeypatch):
    """Has the published weights of a TransXNetT with one block a stage where their download would be."""
    shallow = functools.partial(keras_dualstream.TransXNetT, depths=(1, 1, 1, 1))
    monkeypatch.setattr(keras_dualstream, "TransXNetT", shallow)
    monkeypatch.setenv("KERAS_HOME", str(home))
    cache = home / "models" / "keras_dualstream"
    cache.mkdir(parents=True)
    write_published(cache / "transxnet_t_224.pth", "transxnet_t_224", shallow())


def test_snippets_run(tmp_path, monkeypatch, capsys):
    """With one block a stage: depth makes the training step slow to trace, and the parity tests have it."""
    import torch
    from keras.src.applications import imagenet_utils

    monkeypatch.chdir(tmp_path)
    put_in_the_cache(tmp_path / "home", monkeypatch)
    monkeypatch.setattr(imagenet_utils, "CLASS_INDEX", {str(i): [f"n{i}", f"class {i}"] for i in range(1000)})
    shallow = functools.partial(keras_dualstream.DualViTS, depths=(1, 1, 1, 1))
    monkeypatch.setattr(keras_dualstream, "DualViTS", shallow)
    state_dict = keras_dualstream.conversion.to_torch_state_dict(randomize(shallow()))
    tensors = {name: torch.tensor(array) for name, array in state_dict.items()}
    torch.save({"state_dict": tensors, "args": argparse.Namespace(epochs=300)}, "dualvit_s_224.pth")
    rng = np.random.default_rng(0)
    for index in range(6):
        image = rng.integers(0, 256, (100, 120, 3))
        path = tmp_path / "photos" / f"class {index % 3}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(path, image)
        keras.utils.save_img("photo.jpg", image)
    classify, convert, transfer, pyramid, export, compiled, _ = SNIPPETS
    names = {}
    for snippet in (classify, convert, transfer, pyramid):
        exec(snippet, names)
    printed = capsys.readouterr().out
    assert re.search(r"\[\('n\d+', 'class \d+', .*\), (.*, ){3}\('n\d+', 'class \d+', .*\)\]\n", printed)
    assert "{'P2': (1, 64, 80, 64), 'P3': (1, 32, 40, 128), 'P4': (1, 16, 20, 320), 'P5': (1, 8, 10, 448)}" in printed
    assert names["model"].history.history["accuracy"]
    if keras.config.backend() == "tensorflow":
        exec(export, names)
        assert (tmp_path / "dualvit_s" / "saved_model.pb").exists()
        assert (tmp_path / "dualvit_s.tflite").stat().st_size > 30e6
    if keras.config.backend() == "torch":
        # What is compiled is the same without the C++ that it would become, which takes a minute.
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
        exec(compiled, names)
        assert names["probabilities"].shape == (8, 3)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="the others compile; test_retinanet.py is run on all")
def test_the_detectors_snippet_runs(tmp_path, monkeypatch):
    pytest.importorskip("keras_hub")
    monkeypatch.chdir(tmp_path)
    shallow = functools.partial(keras_dualstream.DSNetT, depths=(1, 1, 1, 1))
    monkeypatch.setattr(keras_dualstream, "DSNetT", shallow)
    names = {"keras": keras, "keras_dualstream": keras_dualstream}
    exec(SNIPPETS[-1], names)
    assert names["found"].keys() == {"boxes", "labels", "confidence", "num_detections"}
    assert (tmp_path / "detector.keras").exists()


VARIANTS = {
    **dualvit.VARIANTS,
    **transxnet.VARIANTS,
    **dsnet.VARIANTS,
    # Every stage has twice the channels of the one before.
    **{
        name: {**row, "embed_dims": [row["embed_dim"] * 2**stage for stage in range(4)]}
        for name, row in dfvt.VARIANTS.items()
    },
}
# What a column leaves out of the reference's checkpoint: the names of the modules that its option leaves out.
LEFT_OUT = {
    **dict.fromkeys(dualvit.VARIANTS, [(), ("aux_head",)]),
    **dict.fromkeys(dsnet.VARIANTS, [(), ("norm_conv2", "norm_sa2", "cross_channel_up", "fuse_channel")]),
}
SIZES = {"T": "tiny", "S": "small", "B": "base"}


def parameters(variant, left_out):
    """Parameters and running statistics of the reference's checkpoint; test_parity.py compares models with it."""
    size = variant[-1]
    name = f"ds_net_{SIZES[size]}" if variant in dsnet.VARIANTS else f"{variant[:-1]}_{size}".lower()
    manifest = read_manifest(name)
    learned = [name for name in manifest["tensors"] if name in manifest["trainable"] or ".running_" in name]
    kept = [name for name in learned if not any(module in name for module in left_out)]
    return sum(int(np.prod(manifest["tensors"][name]["shape"])) for name in kept)


@pytest.mark.parametrize("variant", VARIANTS)
def test_table_has_every_model_and_its_parameters(variant):
    row = next(line for line in README.splitlines() if line.startswith(f"| `{variant}`"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    counted = [f"{parameters(variant, left_out):,}" for left_out in LEFT_OUT.get(variant, [()])]
    assert cells[1 : 1 + len(counted)] == counted
    assert cells[-2:] == [", ".join(map(str, VARIANTS[variant][name])) for name in ("embed_dims", "depths")]


def test_table_has_every_preset():
    """In the order of the catalogue, whose first row of a builder is `imagenet`."""
    table = README.partition("### Weights")[2].partition("\n\n- ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| `")]
    formats = {"pytorch": "PyTorch", "paddle": "Paddle"}
    assert rows == [
        [
            f"`{name}`",
            f"`{row.variant}`",
            str(row.resolution),
            str(row.crop),
            f"{row.top_1:.1f}",
            f"[{formats[row.format]}]({row.page})" + ("" if row.url else ", by hand"),
            row.licence or "none stated",
        ]
        for name, row in PRESETS.items()
    ]
