"""What a step takes of a GPU. Runs in the worker's process."""

import pathlib
import tempfile


def memory_peak(backend):
    """The most that a backend has had on the GPU."""
    if backend == "jax":
        import jax

        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    if backend.startswith("tensorflow"):
        import tensorflow as tf

        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    import torch

    return torch.cuda.max_memory_allocated()


def busy_seconds(run, backend):
    """For how long a GPU computes or copies while `run()` runs, as JAX' or PyTorch's profiler has it.

    Args:
        run: function of no arguments.
        backend: one of `plan.BACKENDS`.

    Returns:
        Seconds; `None` on TensorFlow.
    """
    if backend.startswith("tensorflow"):
        return None
    return covered(_jax_kernels(run) if backend == "jax" else _pytorch_kernels(run))


def covered(intervals):
    """The length of what intervals cover together.

    Args:
        intervals: iterable of pairs of a start and an end.

    Returns:
        float.
    """
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _jax_kernels(run):
    """Start and end, in seconds, of everything on the streams of a GPU."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (path,) = pathlib.Path(folder).glob("**/*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
    for plane in profile.planes:
        if plane.name.startswith("/device:GPU"):
            # Other lines tell of whole programs.
            for line in plane.lines:
                if line.name.startswith("Stream"):
                    for event in line.events:
                        yield event.start_ns / 1e9, (event.start_ns + event.duration_ns) / 1e9


def _pytorch_kernels(run):
    """Start and end, in seconds, of everything on the streams of a GPU."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            yield event.time_range.start / 1e6, event.time_range.end / 1e6
