"""The speed benchmark plans, measures, resumes and reports. It is about processes, so it runs on one backend."""

import dataclasses
import datetime
import functools
import json

import keras
import pytest
from helpers import images
from helpers import predict
from helpers import relative_error

from benchmarks.speed import __main__ as speed
from benchmarks.speed import gpu
from benchmarks.speed import measure
from benchmarks.speed import models
from benchmarks.speed import plan
from benchmarks.speed import report

pytestmark = pytest.mark.skipif(keras.config.backend() != "torch", reason="the workers choose their backends")

SETTINGS = plan.Settings(1, 32, 32, "float32", "cpu", 1, 1)
THREE_BATCHES = dataclasses.replace(SETTINGS, batch=2, batches=3)
FLAGS = "--variant DFvTT --backend torch --mode inference --batch 1 --resolution 32 48 --seconds 0.01"


def test_a_run_measures_every_number_and_is_not_repeated(tmp_path, monkeypatch):
    output = tmp_path / "results"
    speed.main([*FLAGS.split(), "--output", str(output)])
    results = json.loads(output.with_suffix(".json").read_text())
    assert (results["settings"]["height"], results["settings"]["width"]) == (32, 48)
    (cell,) = results["cells"].values()
    assert list(results["cells"]) == ["DFvTT/keras_dualstream/torch/inference"]
    assert cell["parameters"] == 3_978_331
    assert len(cell["seconds"]) == measure.FEWEST_ROUNDS
    assert all(cell[name] > 0 for name in ("import_seconds", "build_seconds", "first_call_seconds", "macs"))
    assert cell["memory_peak"] > cell["memory_imported"] > 0
    assert cell["group"] == datetime.datetime.fromisoformat(cell["group"]).isoformat()
    assert not list(tmp_path.glob("*.tmp"))
    assert "| DFvTT |" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".png").stat().st_size > 0

    monkeypatch.setattr(speed, "measure_group", None)
    speed.main([*FLAGS.split(), "--output", str(output)])
    with pytest.raises(SystemExit, match="other settings"):
        speed.main([*FLAGS.split(), "--batch", "2", "--output", str(output)])


@pytest.mark.parametrize("given", ["0", "-1", "two"])
@pytest.mark.parametrize("flag", ["--batch", "--batches", "--threads", "--resolution"])
def test_counts_are_at_least_one(flag, given, capsys):
    with pytest.raises(SystemExit):
        speed.parse([flag, given])
    assert f"must be a whole number of at least 1. Received: {given}" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["0", "-3", "inf", "nan"])
@pytest.mark.parametrize("flag", ["--seconds", "--limit"])
def test_times_are_above_zero(flag, given, capsys):
    with pytest.raises(SystemExit):
        speed.parse([flag, given])
    assert f"must be above 0. Received: {given}" in capsys.readouterr().err


def test_a_resolution_has_one_or_two_sizes(capsys):
    with pytest.raises(SystemExit):
        speed.parse(["--resolution", "224", "300", "400"])
    assert "a side, or a height and a width. Received: [224, 300, 400]" in capsys.readouterr().err


def test_what_nobody_can_do_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="Nothing to measure"):
        speed.main([*["--backend", "torch-compile", "--mode", "training", "--output"], str(tmp_path / "results")])


def test_checkouts_that_are_missing_are_named(tmp_path):
    (tmp_path / "DFvT").mkdir()
    flags = ["--reference", str(tmp_path), "--output", str(tmp_path / "results"), "--variant", "DFvTT", "DSNetT"]
    with pytest.raises(SystemExit, match="must have the folders DS-Net. Received: .*"):
        speed.main(flags)


def test_a_restart_measures_what_it_is_asked_for_again_and_keeps_the_rest(tmp_path):
    path = tmp_path / "results.json"
    (subjects,) = plan.groups(["DFvTT"], ["torch"], ["inference"], reference=False, naive=False)
    cells = {subjects[0].key: {"seconds": [1.0]}, "DFvTS/keras_dualstream/torch/inference": {"seconds": [2.0]}}
    path.write_text(json.dumps({"settings": {"batch": 1}, "machine": {}, "cells": cells}))
    read = functools.partial(speed.read_results, path, groups=[subjects])
    assert read({"batch": 1}, restart=False)["cells"] == cells
    assert list(read({"batch": 1}, restart=True)["cells"]) == ["DFvTS/keras_dualstream/torch/inference"]
    assert read({"batch": 2}, restart=True)["cells"] == {}


def test_what_failed_is_measured_again_and_by_the_same_libraries_alone():
    groups = plan.groups(["DFvTT", "DFvTS"], ["torch"], ["inference"], reference=False, naive=False)
    first, second = (subjects[0].key for subjects in groups)
    cells = {first: {"seconds": [1.0]}, second: {"error": "KeyError"}}
    assert speed.missing({"machine": speed.machine(), "cells": cells}, groups) == groups[1:]
    other = {"machine": {"cpu": "another"}, "cells": cells}
    assert speed.missing(other, groups[:1]) == []
    with pytest.raises(SystemExit, match="The results are of {'cpu': 'another'}, this is .*: take another --output"):
        speed.missing(other, groups)


def test_what_fails_does_not_undo_an_earlier_success():
    before = {"a": {"seconds": [1.0]}, "b": {"seconds": [1.0]}, "c": {"error": "KeyError"}}
    cells = {"a": {"seconds": [2.0]}, "b": {"error": "killed"}, "c": {"error": "killed"}}
    expected = {"a": {"seconds": [2.0], "group": "noon"}, "c": {"error": "killed", "group": "noon"}}
    assert speed.kept(cells, before, "noon") == expected


def test_a_report_of_what_is_there_needs_no_checkouts(tmp_path, monkeypatch):
    output = tmp_path / "results"
    subjects = plan.groups(["DFvTT"], ["torch"], ["inference"], reference=True, naive=False)[0]
    cells = {subject.key: {"seconds": [1.0] * 3, "matmul_flops": 1.0} for subject in subjects}
    settings = dataclasses.asdict(dataclasses.replace(SETTINGS, height=32, width=48))
    monkeypatch.setattr(speed, "use_cores", lambda threads: 1)
    output.with_suffix(".json").write_text(json.dumps({"settings": settings, "machine": {}, "cells": cells}))
    speed.main([*FLAGS.split(), "--reference", "/nowhere", "--output", str(output)])
    assert "| DFvTT |" in output.with_suffix(".md").read_text()


def test_cells_that_did_not_take_turns_have_no_ratio():
    cells = {
        "DFvTT/reference/torch/inference": dict(seconds=[1.0, 1.0, 1.0], group="noon"),
        "DFvTT/keras_dualstream/jax/inference": dict(seconds=[2.0, 2.0, 2.0], group="noon"),
        "DFvTT/keras_dualstream/torch/inference": dict(seconds=[0.5, 0.5, 0.5], group="midnight"),
    }
    found = report.Results({"settings": dataclasses.asdict(SETTINGS), "machine": {}, "cells": cells})
    columns = ("keras_dualstream/jax", "keras_dualstream/torch")
    assert [found.ratio("DFvTT", column, "inference") for column in columns] == [0.5, None]


def test_an_error_is_one_line_of_the_report():
    assert report.in_one_line("ValueError: \x1b[1mwrong\x1b[0m\nArguments: many") == "ValueError: wrong"


def test_a_worker_that_fails_leaves_its_error(tmp_path):
    subjects = [plan.Subject("DFvTT", "reference", "torch", "inference")]
    with open(tmp_path / "log", "w") as log:
        cells = measure.measure_group(subjects, SETTINGS, str(tmp_path), 0.01, 60.0, log)
    assert cells["DFvTT/reference/torch/inference"]["error"].startswith("ModuleNotFoundError")


def test_the_published_code_takes_turns_with_every_backend():
    published = [("reference", "torch"), ("reference", "torch-compile")]
    ours = [
        ("keras_dualstream", "jax"),
        ("keras_dualstream", "torch-compile"),
        ("naive", "jax"),
        ("naive", "torch-compile"),
    ]
    # PyTorch's compiler trains the published code alone.
    expected = [published + ours, published + ours[::2]]
    groups = plan.groups(["DFvTT"], ["jax", "torch-compile"], ["inference", "training"], reference=True, naive=True)
    assert [[(subject.source, subject.backend) for subject in subjects] for subjects in groups] == expected


def test_workers_choose_their_device_and_share_a_gpu():
    subject = plan.Subject("DFvTT", "keras_dualstream", "jax", "inference")
    settings = [dataclasses.replace(SETTINGS, device=device) for device in ("cpu", "gpu")]
    cpu, cuda = (measure.environment(subject, each) for each in settings)
    assert (cpu["JAX_PLATFORMS"], cpu["CUDA_VISIBLE_DEVICES"], cpu["TF_ENABLE_ONEDNN_OPTS"]) == ("cpu", "-1", "1")
    assert (cuda["JAX_PLATFORMS"], cuda["XLA_PYTHON_CLIENT_PREALLOCATE"]) == ("cuda", "false")
    assert cuda.get("CUDA_VISIBLE_DEVICES") != "-1"


def test_pytorch_compiles_the_prediction_of_the_model(monkeypatch):
    import torch

    # Without the C++ that it would become, which takes a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    model, x = keras.Sequential([keras.Input((4, 5, 3)), keras.layers.Dense(2)]), images(2, 4, 5, 3)
    compiled = models.compiled_program(model, torch.from_numpy(x))
    assert relative_error(compiled(torch.from_numpy(x)), predict(model, x)) < 1e-6


def keras_model():
    layers = [keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1000)]
    model = keras.Sequential(layers)
    return models.KerasModel(model, plan.Subject("DFvTT", "keras_dualstream", "torch", "inference"), THREE_BATCHES)


def torch_model():
    from torch import nn

    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))
    return models.TorchModel(model, plan.Subject("DFvTT", "reference", "torch", "inference"), THREE_BATCHES)


@pytest.mark.parametrize("make", [keras_model, torch_model])
def test_a_step_goes_through_as_many_batches_as_it_is_told(make):
    measured, steps = make(), []
    predicted = measured.inference()
    assert predicted.shape == (6, 1000)
    assert relative_error(predicted[:2], predicted[4:]) == 0
    first = measured.training()
    measured.model.register_forward_hook(lambda *_: steps.append(1))
    assert measured.training() < first
    assert len(steps) == 3


def test_what_several_streams_do_at_once_counts_once():
    assert gpu.covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4


def test_ratios_are_medians_over_the_rounds():
    cell = dict(
        first_call_seconds=1.0, import_seconds=0.1, build_seconds=1.0, matmul_flops=1e10, parameters=7, macs=5e8
    )
    cells = {
        "DFvTT/reference/torch/inference": dict(cell, seconds=[1.0, 4.0, 2.0], memory_imported=1e9, memory_peak=2e9),
        "DFvTT/keras_dualstream/jax/inference": dict(
            cell, seconds=[0.5, 4.0, 0.5], memory_imported=2e9, memory_peak=3.5e9
        ),
    }
    settings = dict(batch=8, height=224, width=224, precision="float32", device="cpu", threads=2)
    found = report.Results({"settings": settings, "machine": {}, "cells": cells})
    lines = list(report.markdown(found))
    assert "| DFvTT | 4.00 ± 150% | 16.00 (**2.00**) ± 700% |" in lines
    assert "| DFvTT | 1.00 | 1.50 (1.50) |" in lines
    assert "| DFvTT | 4 (40%) | 16 (160%) |" in lines
    assert "| DFvTT | 0.50 | 7 | 73.0 |" in lines
