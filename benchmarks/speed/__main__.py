"""Measures models on backends and writes the results as JSON, Markdown and a plot.

    python -m benchmarks.speed --family dualvit --backend jax torch --reference ~/checkouts

benchmarks/README.md tells what the numbers mean.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform

from benchmarks.speed import plan
from benchmarks.speed.measure import measure_group
from benchmarks.speed.models import REFERENCES
from benchmarks.speed.report import write_report

LIBRARIES = ("keras", "tensorflow", "jax", "torch", "keras_hub")


def parse(arguments=None):
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--family", nargs="+", choices=plan.FAMILIES, default=[], help="all variants of these families")
    add("--variant", nargs="+", choices=plan.VARIANTS, default=[], help="these variants; without both, all")
    add("--backend", nargs="+", choices=plan.BACKENDS, default=["tensorflow", "jax", "torch"])
    add("--mode", nargs="+", choices=plan.MODES, default=list(plan.MODES))
    add("--batch", type=count, default=8, help="images a step")
    add("--resolution", type=count, nargs="+", default=[224], metavar="PIXELS", help="side, or height and width")
    add("--precision", choices=plan.PRECISIONS, default="float32")
    add("--device", choices=("cpu", "gpu"), default="cpu")
    add("--threads", type=count, help="CPU cores to use; by default all that this process may")
    add("--batches", type=count, help="batches a step, without waiting in between; by default 1, on a GPU 10")
    add("--seconds", type=positive, default=4.0, help="time for the steps of each model and backend, on average")
    add("--limit", type=positive, default=600.0, help="seconds after which a build, first call or step is given up")
    add("--reference", metavar="PATH", help="folder with checkouts of the published code, to measure it in turn")
    add("--peers", action="store_true", help="also KerasHub's Swin-T and keras.applications' ConvNeXt-Tiny")
    add("--naive", action="store_true", help="also the variants with Keras' own depthwise convolutions")
    add("--output", default="output/speed", help="path of the results, before .json, .md and .png")
    add("--restart", action="store_true", help="measure again what the results have already")
    given = parser.parse_args(arguments)
    if len(given.resolution) > 2:
        parser.error(f"--resolution must be a side, or a height and a width. Received: {given.resolution}")
    return given


def count(text):
    """A whole number of at least 1, of the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1. Received: {text}")
    return int(text)


def positive(text):
    """A number above 0, of the command line."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0. Received: {text}")
    return number


def use_cores(threads):
    """Confines this process and those it starts to its first cores, and returns how many that are."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    return len(cores)


def machine():
    """What the results were measured on and with."""
    described = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in described if line.startswith("model name")), platform.machine())
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"cpu": cpu, "python": platform.python_version(), **versions}


def read_results(path, settings, restart, groups):
    """The results so far, with `restart` without those of `groups`, or none.

    Raises:
        SystemExit: if they were measured with other settings.
    """
    results = json.loads(path.read_text()) if path.exists() else {}
    if results.get("settings", settings) != settings and not restart:
        raise SystemExit(f"{path} was measured with other settings: take another --output, or --restart.")
    if results.get("settings") != settings:
        return {"settings": settings, "machine": machine(), "cells": {}}
    again = {subject.key for subjects in groups for subject in subjects} if restart else set()
    cells = {key: cell for key, cell in results["cells"].items() if key not in again}
    return {**results, "machine": results["machine"] if cells else machine(), "cells": cells}


def missing(results, groups):
    """The groups of which the results have no measurement, or a failed one.

    Raises:
        SystemExit: if there are some and the others were measured on another machine or with other libraries.
    """
    cells = results["cells"]
    found = [subjects for subjects in groups if any("seconds" not in cells.get(x.key, {}) for x in subjects)]
    if found and results["machine"] != machine():
        raise SystemExit(f"The results are of {results['machine']}, this is {machine()}: take another --output.")
    return found


def check_reference(path, groups):
    """Refuses a folder without the checkouts that are needed.

    Raises:
        SystemExit: naming those.
    """
    folders = {REFERENCES[x.model][0] for subjects in groups for x in subjects if x.source == "reference"}
    absent = sorted(folder for folder in folders if not (pathlib.Path(path) / folder).is_dir())
    if absent:
        raise SystemExit(f"--reference must have the folders {', '.join(absent)}. Received: {path}")


def write_results(path, results):
    """Writes beside and renames, so that an interrupted run leaves the last whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(results, indent=1))
    beside.replace(path)


def main(arguments=None):
    """Measures what the results do not have yet, and writes the report after each group."""
    given = parse(arguments)
    chosen = [variant for family in given.family for variant in plan.FAMILIES[family]] + given.variant
    models = list(dict.fromkeys(chosen or plan.VARIANTS)) + list(plan.PEERS if given.peers else [])
    settings = plan.Settings(
        batch=given.batch,
        height=given.resolution[0],
        width=given.resolution[-1],
        precision=given.precision,
        device=given.device,
        threads=use_cores(given.threads),
        batches=given.batches or {"cpu": 1, "gpu": 10}[given.device],
    )
    path = pathlib.Path(f"{given.output}.json")
    groups = plan.groups(models, given.backend, given.mode, given.reference is not None, given.naive)
    if not groups:
        raise SystemExit("Nothing to measure: PyTorch's compiler trains neither this package's models nor peers.")
    results = read_results(path, dataclasses.asdict(settings), given.restart, groups)
    to_measure = missing(results, groups)
    check_reference(given.reference, to_measure)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{given.output}.log", "a") as log:
        for subjects in to_measure:
            print(f"{subjects[0].model}, {subjects[0].mode}", flush=True)
            started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            cells = measure_group(subjects, settings, given.reference, given.seconds, given.limit, log)
            for subject in subjects:
                print(f"  {subject.source} on {subject.backend}: {summary(cells[subject.key], settings)}", flush=True)
            results["cells"].update(kept(cells, results["cells"], started))
            write_results(path, results)
            write_report(given.output, results)
    write_report(given.output, results)


def kept(cells, before, started):
    """The cells of a group, with when it began, but those that failed where the results have a success."""
    return {
        key: {**cell, "group": started}
        for key, cell in cells.items()
        if "seconds" in cell or "seconds" not in before.get(key, {})
    }


def summary(cell, settings):
    """A cell in a few words."""
    if "error" in cell:
        return cell["error"]
    fastest = settings.batch / min(cell["seconds"])
    return f"first call {cell['first_call_seconds']:.1f} s, at best {fastest:.2f} images/s"


if __name__ == "__main__":
    main()
