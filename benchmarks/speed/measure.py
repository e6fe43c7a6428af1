"""Runs the workers of one group in turn."""

import contextlib
import dataclasses
import json
import os
import pathlib
import selectors
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
FEWEST_ROUNDS, MOST_ROUNDS = 3, 20
WARM_UP = 2

# Between two workers' steps: idle threads of the one before stop spinning.
PAUSE = 0.02

# Steps of a turn before the one that counts. What a step leaves free goes back to the host of a virtual machine while
# the others take their turns; to fetch it again made JAX' training steps half as long again.
SETTLE = 1


class WorkerError(Exception):
    """A worker failed, died, or took too long."""


class Process:
    """A worker's process.

    Args:
        subject: `Subject`.
        settings: `Settings`.
        reference: path of the checkouts, or `None`.
        log: open file for what the worker prints.
    """

    def __init__(self, subject, settings, reference, log):
        given = dict(
            subject=dataclasses.asdict(subject),
            settings=dataclasses.asdict(settings),
            reference=reference and str(pathlib.Path(reference).resolve()),
        )
        self.subject = subject
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.worker", json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env=environment(subject, settings),
        )

    def ask(self, request, limit):
        """The worker's answer, a dict.

        Args:
            request: name of one of the worker's methods.
            limit: float. Seconds to wait.

        Raises:
            WorkerError: if it failed, died or took longer.
        """
        try:
            print(request, file=self.process.stdin, flush=True)
        except BrokenPipeError as error:
            raise WorkerError(f"ended before `{request}`") from error
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(limit):
                raise WorkerError(f"`{request}` took more than {limit:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"ended in `{request}`, exit status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def end(self):
        """Ends the process."""
        self.process.kill()
        self.process.communicate()


def environment(subject, settings):
    """The environment that fixes a worker's backend, device and number of threads."""
    gpu = settings.device == "gpu"
    variables = {
        **os.environ,
        "KERAS_BACKEND": subject.backend.partition("-")[0],
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_PLATFORMS": "cuda" if gpu else "cpu",
        "KERAS_TORCH_DEVICE": "cuda" if gpu else "cpu",
        # TensorFlow's and JAX' pools are as large as the set of cores that the process may use.
        "OMP_NUM_THREADS": str(settings.threads),
        "MKL_NUM_THREADS": str(settings.threads),
        "TF_NUM_INTRAOP_THREADS": str(settings.threads),
        # By itself TensorFlow takes oneDNN's kernels, as PyTorch does everywhere, only on CPUs with VNNI or AMX.
        "TF_ENABLE_ONEDNN_OPTS": "1",
        # Several processes share a GPU.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        # A program that some earlier run compiled would make the first call look short.
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    }
    variables.pop("JAX_COMPILATION_CACHE_DIR", None)
    if not gpu:
        variables["CUDA_VISIBLE_DEVICES"] = "-1"
    return variables


def measure_group(subjects, settings, reference, seconds, limit, log):
    """Builds every subject, then lets them take turns.

    Args:
        subjects: list of `Subject`.
        settings: `Settings`.
        reference: path of the checkouts, or `None`.
        seconds: float. Time for the steps of one subject, on average.
        limit: float. Seconds that any answer may take.
        log: open file for what the workers print.

    Returns:
        Dict of cells by the subjects' keys. A cell has what the worker answered, and in `"seconds"` its steps, the
        n-th of each subject taken one after the other; or an `"error"`.
    """
    cells = {}
    with contextlib.ExitStack() as stack:
        ready = []
        for subject in subjects:
            process = Process(subject, settings, reference, log)
            stack.callback(process.end)
            cells[subject.key] = {}
            if _ask(process, ("build", "first_call", *["step"] * WARM_UP), cells, limit):
                ready.append(process)
        total = sum(cells[process.subject.key].pop("seconds") for process in ready) or 1.0
        rounds = min(max(round(seconds * len(ready) / (total * (SETTLE + 1))), FEWEST_ROUNDS), MOST_ROUNDS)
        for process in ready:
            cells[process.subject.key]["seconds"] = []
        for _ in range(rounds):
            ready = [process for process in ready if _take_turn(process, cells, limit)]
        for process in ready:
            _ask(process, ["end"], cells, limit)
    return cells


def _ask(process, requests, cells, limit):
    """Puts a worker's answers into its cell, or its error in place of them; tells whether it is well."""
    try:
        for request in requests:
            cells[process.subject.key].update(process.ask(request, limit))
    except WorkerError as error:
        cells[process.subject.key] = {"error": str(error)}
        process.end()
        return False
    return True


def _take_turn(process, cells, limit):
    """A turn of a worker, whose last step counts; tells whether it is well."""
    time.sleep(PAUSE)
    seconds = cells[process.subject.key]["seconds"]
    well = _ask(process, ["step"] * (SETTLE + 1), cells, limit)
    if well:
        cells[process.subject.key]["seconds"] = [*seconds, cells[process.subject.key]["seconds"]]
    return well
