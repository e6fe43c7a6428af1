"""What is measured: models, where they come from, and what runs them."""

import dataclasses

FAMILIES = {
    "dsnet": ("DSNetT", "DSNetS", "DSNetB"),
    "dualvit": ("DualViTS", "DualViTB", "DualViTL"),
    "dfvt": ("DFvTT", "DFvTS", "DFvTB"),
    "transxnet": ("TransXNetT", "TransXNetS", "TransXNetB"),
}
VARIANTS = tuple(variant for variants in FAMILIES.values() for variant in variants)

# Published top-1 on ImageNet at 224; Dual-ViT's with its token-label head.
ACCURACY = {
    "DSNetT": 79.0,
    "DSNetS": 82.3,
    "DSNetB": 83.1,
    "DualViTS": 84.1,
    "DualViTB": 85.2,
    "DualViTL": 85.7,
    "DFvTT": 73.0,
    "DFvTS": 78.3,
    "DFvTB": 82.0,
    "TransXNetT": 81.6,
    "TransXNetS": 83.8,
    "TransXNetB": 84.6,
    "SwinT": 81.3,
    "ConvNeXtTiny": 82.1,
}

# What else a user of Keras would take, and where from.
PEERS = {"SwinT": "keras_hub", "ConvNeXtTiny": "keras_applications"}

BACKENDS = ("tensorflow", "tensorflow-xla", "jax", "torch", "torch-compile")
MODES = ("inference", "training")
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Subject:
    """One model on one backend, run in one mode.

    Args:
        model: str. A variant or peer.
        source: `"keras_dualstream"`, `"naive"` (the same with Keras' own depthwise
            forms), `"reference"`, `"keras_hub"` or `"keras_applications"`.
        backend: one of `BACKENDS`.
        mode: one of `MODES`.
    """

    model: str
    source: str
    backend: str
    mode: str

    @property
    def key(self):
        """The name of its cell in the results."""
        return "/".join(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all cells of one run have in common.

    Args:
        batch: int. Images a step.
        height: int. Pixels.
        width: int. Pixels.
        precision: one of `PRECISIONS`; the halves are mixed precision.
        device: `"cpu"` or `"gpu"`.
        threads: int. CPU cores that every process may use.
        batches: int. Batches that a step goes through without waiting in between.
    """

    batch: int
    height: int
    width: int
    precision: str
    device: str
    threads: int
    batches: int


def groups(models, backends, modes, reference, naive):
    """The subjects that take turns, so that what else the machine does hits all alike.

    Args:
        models: names of variants and peers.
        backends: some of `BACKENDS`.
        modes: some of `MODES`.
        reference: bool. Whether the published code takes part.
        naive: bool. Whether Keras' own depthwise forms take part.

    Returns:
        List of lists of `Subject`, one for each model and mode; the published code comes first.
    """
    found = []
    for mode in modes:
        for model in models:
            subjects = []
            if reference and model in VARIANTS:
                # Eager first: every ratio is to it.
                compiled = ["torch-compile"] if "torch-compile" in backends else []
                subjects += [Subject(model, "reference", backend, mode) for backend in ["torch", *compiled]]
            sources = [PEERS.get(model, "keras_dualstream"), *(["naive"] if naive and model in VARIANTS else [])]
            subjects += [Subject(model, source, backend, mode) for source in sources for backend in backends]
            found.append([subject for subject in subjects if not _is_refused(subject)])
    return [subjects for subjects in found if subjects]


def _is_refused(subject):
    """Whether this package's models do not do it: PyTorch's compiler ends their training step with an error."""
    own = subject.source in ("keras_dualstream", "naive")
    return own and (subject.backend, subject.mode) == ("torch-compile", "training")
