"""Results as Markdown tables and a plot."""

import pathlib
import re
import statistics

from benchmarks.speed import plan

TITLES = {
    "reference/torch": "published code, PyTorch",
    "reference/torch-compile": "published code, `torch.compile`",
    "keras_dualstream/tensorflow": "TensorFlow",
    "keras_dualstream/tensorflow-xla": "TensorFlow, XLA",
    "keras_dualstream/jax": "JAX",
    "keras_dualstream/torch": "PyTorch",
    "keras_dualstream/torch-compile": "PyTorch, compiled",
}
COLOURS = {
    "tensorflow": "tab:orange",
    "tensorflow-xla": "tab:red",
    "jax": "tab:blue",
    "torch": "tab:green",
    "torch-compile": "tab:olive",
}


class Results:
    """Questions to the cells of a results file.

    Args:
        results: dict as `benchmarks.speed` writes it.
    """

    def __init__(self, results):
        self.settings, self.machine, self.cells = results["settings"], results["machine"], results["cells"]
        keys = [key.split("/") for key in self.cells]
        self.models = [name for name in plan.ACCURACY if any(model == name for model, *_ in keys)]
        self.modes = [mode for mode in plan.MODES if any(key[3] == mode for key in keys)]
        found = {_column(source, backend) for _, source, backend, _ in keys}
        order = [*TITLES, *(f"naive/{backend}" for backend in plan.BACKENDS)]
        self.columns = [column for column in order if column in found]

    def cell(self, model, column, mode):
        """The cell of a model in a column, `{}` if there is none."""
        source, backend = column.split("/")
        if source == "keras_dualstream":
            source = plan.PEERS.get(model, source)
        return self.cells.get(f"{model}/{source}/{backend}/{mode}", {})

    def throughput(self, model, column, mode):
        """Images a second, the median; `None` without a measurement."""
        seconds = self.cell(model, column, mode).get("seconds")
        return seconds and self.settings["batch"] / statistics.median(seconds)

    def ratio(self, model, column, mode, to="reference/torch"):
        """How many times as fast as another column: the median over the rounds, in which both took a turn.

        `None` where they did not: what the machine did between two groups would count as speed.
        """
        cells = [self.cell(model, name, mode) for name in (to, column)]
        pair = [cell.get("seconds") for cell in cells]
        if not all(pair) or len(pair[0]) != len(pair[1]) or cells[0].get("group") != cells[1].get("group"):
            return None
        return statistics.median(theirs / ours for theirs, ours in zip(*pair, strict=True))

    def spread(self, model, column, mode):
        """Distance of the quartiles of the seconds, relative to their median."""
        seconds = self.cell(model, column, mode)["seconds"]
        first, _, third = statistics.quantiles(seconds, n=4)
        return (third - first) / statistics.median(seconds)

    def any(self, model, field):
        """A field that all cells of a model share: that of this package, or of the published code."""
        for column in reversed(self.columns):
            for mode in self.modes:
                if self.cell(model, column, mode).get(field) and not column.startswith("naive"):
                    return self.cell(model, column, mode)[field]
        return None

    def gmacs(self, model):
        """Billions of multiply-adds an image, `None` where nothing counted them."""
        macs = self.any(model, "macs")
        return macs and macs / 1e9

    def working_set(self, model, column, mode):
        """Gigabytes that the model and its steps take beyond the libraries; on a GPU all that is on it."""
        cell = self.cell(model, column, mode)
        if "memory_peak" not in cell:
            return None
        libraries = cell["memory_imported"] if self.settings["device"] == "cpu" else 0
        return (cell["memory_peak"] - libraries) / 1e9


def _column(source, backend):
    return f"{'keras_dualstream' if source in plan.PEERS.values() else source}/{backend}"


def write_report(output, results):
    """Writes `output`.md and `output`.png.

    Args:
        output: str. Path without ending.
        results: dict as `benchmarks.speed` writes it.
    """
    found = Results(results)
    beside = pathlib.Path(f"{output}.tmp")
    beside.write_text("\n".join(markdown(found)) + "\n")
    beside.replace(f"{output}.md")
    if any(found.gmacs(model) for model in found.models):
        plot(found, f"{output}.png")


def markdown(found):
    """The lines of the report."""
    settings = found.settings
    in_a_row = f", {settings['batches']} batches in a row" if settings.get("batches", 1) > 1 else ""
    yield "# Speed"
    yield ""
    yield (
        f"Batch {settings['batch']}{in_a_row} at {settings['height']} × {settings['width']}, {settings['precision']}, "
        f"{settings['threads']} threads, {settings['device'].upper()}. "
        + ", ".join(f"{name} {version}" for name, version in found.machine.items())
        + ". Made by `python -m benchmarks.speed`; benchmarks/README.md tells what the numbers mean."
    )
    for mode in found.modes:
        name = "Inference" if mode == "inference" else "Training step"
        yield from section(f"{name}: images/s (times as fast as the published code in PyTorch), ± spread", found)
        yield from rows(found, lambda model, column, mode=mode: speed(found, model, column, mode))
        if "reference/torch-compile" in found.columns:
            yield ""
            yield from best_of_compiled(found, mode)
        yield from section(f"{name}: first call, s", found)
        yield from rows(found, lambda model, column, mode=mode: field(found, model, column, mode, "first_call_seconds"))
        yield from section(f"{name}: memory beyond the libraries, GB", found)
        yield from rows(found, lambda model, column, mode=mode: memory(found, model, column, mode))
        yield from section(f"{name}: GFLOP/s (share of what one large matrix product reaches)", found)
        yield from rows(found, lambda model, column, mode=mode: flops(found, model, column, mode))
        if settings["device"] == "gpu":
            yield from section(f"{name}: ms that the GPU is busy for a batch", found)
            yield from rows(found, lambda model, column, mode=mode: kernels(found, model, column, mode))
    yield from section("Import on top of the framework and build, s", found)
    yield from rows(found, lambda model, column: imports(found, model, column))
    yield ""
    yield "## Models"
    yield ""
    yield "| model | GMACs | parameters | published top-1 |"
    yield "|---" * 4 + "|"
    for model in found.models:
        gmacs = found.gmacs(model)
        parameters = found.any(model, "parameters")
        cells = [model, f"{gmacs:.2f}" if gmacs else "–", f"{parameters:,}" if parameters else "–"]
        yield f"| {' | '.join(cells)} | {plan.ACCURACY[model]} |"
    errors = [f"- {key}: {in_one_line(cell['error'])}" for key, cell in found.cells.items() if "error" in cell]
    if errors:
        yield from ["", "## Failed", "", *errors]


def in_one_line(error):
    """The beginning of an error, without the colours that Keras gives some."""
    return re.sub(r"\x1b\[[\d;]*m", "", error).strip().split("\n")[0]


def section(title, found):
    """A heading and the head of a table of models by columns."""
    names = [TITLES.get(column, f"naive, {column.split('/')[1]}") for column in found.columns]
    yield from ["", f"## {title}", "", f"| model | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]


def rows(found, text):
    """A row for each model, of `text(model, column)`."""
    for model in found.models:
        cells = [text(model, column) for column in found.columns]
        if any(cells):
            yield f"| {model} | {' | '.join(cells)} |"


def speed(found, model, column, mode):
    """Images a second, the ratio to the published code, and the spread."""
    throughput = found.throughput(model, column, mode)
    if throughput is None:
        return "failed" if "error" in found.cell(model, column, mode) else ""
    ratio = found.ratio(model, column, mode)
    compared = "" if ratio is None or column == "reference/torch" else f" (**{ratio:.2f}**)"
    return f"{throughput:.2f}{compared} ± {found.spread(model, column, mode):.0%}"


def field(found, model, column, mode, name):
    """One number of a cell."""
    value = found.cell(model, column, mode).get(name)
    return "" if value is None else f"{value:.1f}"


def kernels(found, model, column, mode):
    """Milliseconds of a cell's kernels."""
    seconds = found.cell(model, column, mode).get("kernel_seconds")
    return "" if seconds is None else f"{1e3 * seconds:.1f}"


def memory(found, model, column, mode):
    """The working set and how many times that of the published code it is."""
    ours, theirs = (found.working_set(model, name, mode) for name in (column, "reference/torch"))
    if ours is None:
        return ""
    return f"{ours:.2f}" if theirs is None or column == "reference/torch" else f"{ours:.2f} ({ours / theirs:.2f})"


def flops(found, model, column, mode):
    """Floating-point operations a second; a training step has three times those of inference."""
    throughput, macs = found.throughput(model, column, mode), found.any(model, "macs")
    if throughput is None or macs is None:
        return ""
    achieved = 2 * macs * throughput * (3 if mode == "training" else 1)
    return f"{achieved / 1e9:.0f} ({achieved / found.cell(model, column, mode)['matmul_flops']:.0%})"


def imports(found, model, column):
    """Seconds to import and to build."""
    cells = [found.cell(model, column, mode) for mode in found.modes]
    built = [cell for cell in cells if "build_seconds" in cell]
    return f"{built[0]['import_seconds']:.2f}, {built[0]['build_seconds']:.1f}" if built else ""


def best_of_compiled(found, mode):
    """Lines that compare each model's fastest backend with the compiled published code."""
    yield "Fastest backend beside the published code under `torch.compile`:"
    yield ""
    for model in found.models:
        ratios = {
            column: found.ratio(model, column, mode, to="reference/torch-compile")
            for column in found.columns
            if column.startswith("keras_dualstream")
        }
        ratios = {column: ratio for column, ratio in ratios.items() if ratio is not None}
        if ratios:
            best = max(ratios, key=ratios.get)
            yield f"- {model}: {TITLES[best]}, {ratios[best]:.2f} times as fast"


def plot(found, path):
    """Throughput against GMACs, with the published accuracy beside each model's name."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found.modes), figsize=(7 * len(found.modes), 6), squeeze=False)
    for axis, mode in zip(axes[0], found.modes, strict=True):
        for column in found.columns:
            plot_column(axis, found, column, mode)
        axis.set(xscale="log", yscale="log", xlabel="GMACs an image", ylabel="images/s", title=mode)
        axis.grid(which="both", alpha=0.2)
        # Room for the names beside the points.
        axis.margins(0.15)
        axis.legend(fontsize=8)
    settings = found.settings
    figure.suptitle(
        f"batch {settings['batch']}, {settings['height']} × {settings['width']}, {settings['precision']}, "
        f"{settings['threads']} threads, {settings['device'].upper()}; beside the names ImageNet top-1 as published"
    )
    figure.tight_layout()
    # At last, because where there is room depends on everything else.
    for axis, mode in zip(axes[0], found.modes, strict=True):
        label_models(axis, found, mode)
    beside = pathlib.Path(f"{path}.tmp")
    figure.savefig(beside, dpi=110, format="png")
    beside.replace(path)
    pyplot.close(figure)


def plot_column(axis, found, column, mode):
    """The points of one column."""
    source, backend = column.split("/")
    points = [(found.gmacs(model), found.throughput(model, column, mode)) for model in found.models]
    points = [point for point in points if None not in point]
    if not points:
        return
    style = dict(marker="x" if source == "naive" else "o", color=COLOURS[backend])
    if source == "reference":
        style = dict(marker="s", color="black" if backend == "torch" else "grey", facecolors="none")
    title = TITLES.get(column, f"naive, {backend}").replace("`", "")
    axis.scatter(*zip(*points, strict=True), s=45, label=title, **style)


def label_models(axis, found, mode):
    """Each model's name and published accuracy beside its fastest point, where nothing else is."""
    from adjustText import adjust_text

    texts, points = [], []
    for model in found.models:
        speeds = list(filter(None, (found.throughput(model, column, mode) for column in found.columns)))
        if speeds and found.gmacs(model):
            points += [(found.gmacs(model), speed) for speed in speeds]
            text = f"{model}\n{plan.ACCURACY[model]:.1f}%"
            texts.append(axis.text(found.gmacs(model), max(speeds), text, ha="center", va="bottom", fontsize=7))
    if texts:
        x, y = zip(*points, strict=True)
        lines = dict(arrowstyle="-", color="grey", linewidth=0.5)
        adjust_text(texts, x, y, ax=axis, expand=(1.3, 1.4), arrowprops=lines)
