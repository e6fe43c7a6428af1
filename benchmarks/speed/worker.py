"""One subject in a process of its own: reads a request a line from stdin, answers a line of JSON on stdout.

Requests: `build` and `first_call` answer with what they measured; `step` with the seconds of one batch of a step; `end`
with the most memory since the first call, on a GPU since the start, and with counts.
"""

import json
import os
import sys
import time

from benchmarks.speed import gpu
from benchmarks.speed import memory
from benchmarks.speed import models
from benchmarks.speed.plan import Settings
from benchmarks.speed.plan import Subject


class Worker:
    """Answers the requests about one subject."""

    def __init__(self, subject, settings, reference):
        self.subject, self.settings, self.reference = subject, settings, reference

    def build(self):
        """Imports and builds the model."""
        build, framework_seconds, import_seconds = models.load(self.subject, self.settings, self.reference)
        imported = memory.resident()
        start = time.perf_counter()
        self.model = build()
        build_seconds = time.perf_counter() - start
        return dict(
            framework_seconds=framework_seconds,
            import_seconds=import_seconds,
            build_seconds=build_seconds,
            parameters=self.model.parameters,
            memory_imported=imported,
        )

    def first_call(self):
        """The first step, which traces and compiles."""
        measured = dict(first_call_seconds=timed(self._run), memory_first_call=memory.peak())
        memory.reset_peak()
        return measured

    def _matmul_flops(self):
        """Floating-point operations a second of the fastest of several large matrix products."""
        size = 8192 if self.settings.device == "gpu" else 1024
        multiply = self.model.multiply(size)
        return 2 * size**3 * self.settings.batches / min(timed(multiply) for _ in range(5))

    def _run(self):
        return getattr(self.model, self.subject.mode)()

    def step(self):
        """One step."""
        return dict(seconds=timed(self._run) / self.settings.batches)

    def end(self):
        """The most memory since the first call, and operations, counted after it as that takes memory of its own.

        On a GPU it is the most since the start, compiling included: JAX cannot forget it.
        """
        on_gpu = self.settings.device == "gpu"
        measured = dict(memory_peak=gpu.memory_peak(self.subject.backend) if on_gpu else memory.peak())
        if on_gpu:
            busy = gpu.busy_seconds(self._run, self.subject.backend)
            measured.update(kernel_seconds=busy and busy / self.settings.batches)
        return dict(measured, macs=self.model.macs(), matmul_flops=self._matmul_flops())


def timed(function):
    """The seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    """Answers until stdin ends."""
    given = json.loads(sys.argv[1])
    # Libraries print; the answers have the real stdout for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(Subject(**given["subject"]), Settings(**given["settings"]), given["reference"])
    for line in sys.stdin:
        try:
            answer = getattr(worker, line.strip())()
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
