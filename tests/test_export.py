"""What each backend exports: the README's table, and every word of it tried."""

import functools
import pathlib
import re
from typing import NamedTuple

import export_worker
import keras
import numpy as np
import pytest
from helpers import randomize
from helpers import tiny_dfvt
from helpers import tiny_dsnet
from helpers import tiny_model
from helpers import tiny_transxnet

README = pathlib.Path(__file__).parent.parent / "README.md"
BACKEND = keras.config.backend()
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
TOLERANCE = 1e-4


class Format(NamedTuple):
    """A row of the table: what a file is, how it is made and how a fresh process runs it."""

    title: str
    call: str
    suffix: str
    run: object


class Case(NamedTuple):
    """A model, the `input_signature` it is exported with, and batches of images for the file."""

    options: dict
    signature: tuple | None
    batches: tuple


class Cell(NamedTuple):
    """A cell of the table: its text, the cases that work (`make parity` tries the slow ones), and those that fail."""

    text: str
    works: tuple = ()
    slow: tuple = ()
    fails: dict = {}


FORMATS = {
    "tf_saved_model": Format("SavedModel", 'model.export(path, "tf_saved_model")', "", export_worker.run_saved_model),
    "litert": Format("TFLite", 'model.export(path, "litert")', ".tflite", export_worker.run_tflite),
    "torch": Format("PyTorch program", 'model.export(path, "torch")', ".pt2", export_worker.run_torch_program),
    "keras": Format("`.keras`", "model.save(path)", ".keras", export_worker.run_keras_file),
}

CLASSIFIER = dict(input_shape=(65, 97, 3))
HEADLESS = dict(include_top=False, input_shape=(None, None, 3), drop_path_rate=0.5)
CHANNELS_FIRST = dict(input_shape=(3, 33, 64), data_format="channels_first", include_preprocessing=False)
DFVT = dict(make=tiny_dfvt, depths=(2, 1, 2, 1), input_shape=(65, 97, 3))
DFVT_HEADLESS = dict(
    make=tiny_dfvt, depths=(2, 1, 1, 1), include_top=False, input_shape=(None, None, 3), drop_path_rate=0.5
)
TRANSXNET = dict(make=tiny_transxnet, input_shape=(65, 97, 3))
TRANSXNET_HEADLESS = dict(make=tiny_transxnet, include_top=False, input_shape=(None, None, 3), drop_path_rate=0.5)
DSNET = dict(make=tiny_dsnet, input_shape=(65, 97, 3))
DSNET_HEADLESS = dict(make=tiny_dsnet, include_top=False, input_shape=(None, None, 3), drop_path_rate=0.5)
MIXED = dict(input_shape=(32, 32, 3), dtype="mixed_float16")


def pooled_transxnet(**options):
    """A user's own functional model on a backbone."""
    backbone = tiny_transxnet(include_top=False, **options)
    pooled = keras.layers.GlobalAveragePooling2D(data_format="channels_last")(backbone.pyramid_outputs["P4"])
    return keras.Model(backbone.input, pooled)


CASES = {
    "any batch": Case(CLASSIFIER, None, ((2, 65, 97, 3), (1, 65, 97, 3))),
    "one batch": Case(CLASSIFIER, (2, 65, 97, 3), ((2, 65, 97, 3),)),
    "any size": Case(HEADLESS, None, ((1, 64, 64, 3), (2, 65, 97, 3), (1, 90, 33, 3))),
    "one size": Case(HEADLESS, (None, 65, 97, 3), ((2, 65, 97, 3), (1, 65, 97, 3))),
    "DFvT, any batch": Case(DFVT, None, ((2, 65, 97, 3), (1, 65, 97, 3))),
    "DFvT, one batch": Case(DFVT, (1, 65, 97, 3), ((1, 65, 97, 3),)),
    "DFvT, any size": Case(DFVT_HEADLESS, None, ((1, 64, 64, 3), (2, 65, 97, 3), (1, 90, 33, 3))),
    "TransXNet, any batch": Case(TRANSXNET, None, ((2, 65, 97, 3), (1, 65, 97, 3))),
    "TransXNet, one batch": Case(TRANSXNET, (1, 65, 97, 3), ((1, 65, 97, 3),)),
    "TransXNet, any size": Case(TRANSXNET_HEADLESS, None, ((1, 64, 64, 3), (2, 65, 97, 3), (1, 90, 33, 3))),
    "on TransXNet, any batch": Case({**TRANSXNET, "make": pooled_transxnet}, None, ((2, 65, 97, 3), (1, 65, 97, 3))),
    "DS-Net, one batch": Case(DSNET, (1, 65, 97, 3), ((1, 65, 97, 3),)),
    "DS-Net, any size": Case(DSNET_HEADLESS, None, ((1, 64, 64, 3), (2, 65, 97, 3), (1, 90, 33, 3))),
    "channels first": Case(CHANNELS_FIRST, None, ((2, 3, 33, 64),)),
}

NO_TORCH_PROGRAM = Cell("no: of PyTorch only", fails={"one batch": (ValueError, "requires PyTorch backend")})
KERAS_FILE = Cell("yes; it loads under every backend", works=("any batch",))

EXPORTS = {
    ("tf_saved_model", "tensorflow"): Cell(
        "yes: any batch, any image size",
        works=("TransXNet, any size",),
        slow=("any batch", "any size", "DFvT, any size", "DS-Net, any size"),
    ),
    ("tf_saved_model", "jax"): Cell(
        "yes, with TensorFlow installed: any batch, one image size, as JAX cannot compare unknown sizes",
        works=("TransXNet, any batch",),
        slow=("any batch", "one size", "DFvT, any batch"),
        fails={"any size": (Exception, "Symbolic dimension comparison .* is inconclusive")},
    ),
    ("tf_saved_model", "torch"): Cell(
        "no: Keras needs `torch-xla` for it", fails={"one batch": (ImportError, "requires the torch_xla module")}
    ),
    ("litert", "tensorflow"): Cell(
        "yes: any batch, any image size, only built-in ops, float32, float16 or int8 "
        "([benchmarks/tflite.md](benchmarks/tflite.md)); of models in float32, as mixed precision needs Flex ops",
        works=("any batch", "TransXNet, any size", "on TransXNet, any batch"),
        slow=("one batch", "any size", "channels first", "DFvT, any size", "DS-Net, any size"),
    ),
    ("litert", "jax"): Cell(
        "no: Keras has no exporter; save a `.keras` file and export it under TensorFlow",
        fails={"one batch": (ValueError, "requires TensorFlow or PyTorch backend")},
    ),
    ("litert", "torch"): Cell(
        "no: Keras needs `litert-torch` for it; save a `.keras` file and export it under TensorFlow",
        fails={"one batch": (ImportError, "must install the `litert-torch` package")},
    ),
    ("torch", "tensorflow"): NO_TORCH_PROGRAM,
    ("torch", "jax"): NO_TORCH_PROGRAM,
    ("torch", "torch"): Cell(
        "yes: one batch, one image size, both in `input_signature`",
        works=("one batch", "DFvT, one batch", "TransXNet, one batch", "DS-Net, one batch"),
    ),
    **{("keras", backend): KERAS_FILE for backend in BACKENDS},
}

HERE = {form: EXPORTS[form, BACKEND] for form in FORMATS}


@pytest.fixture(scope="module")
def fresh_process():
    with export_worker.fresh_processes() as run:
        yield run


def readme_table():
    """The table of `EXPORTS` in Markdown."""
    lines = ["| | " + " | ".join(BACKENDS.values()) + " |", "|---" * (len(BACKENDS) + 1) + "|"]
    for form, row in FORMATS.items():
        cells = [EXPORTS[form, backend].text for backend in BACKENDS]
        lines.append(f"| {row.title}: `{row.call}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@functools.cache
def small_model(make=tiny_model, **options):
    """A small model, none of whose weights and BatchNorm statistics are the initial ones."""
    return randomize(make(**{"depths": (1, 1, 1, 1), **options}))


def images(*shape):
    """Images in [0, 255], each of another contrast."""
    contrast = np.linspace(1, 0.3, shape[0]).reshape(-1, 1, 1, 1)
    return (np.random.default_rng(0).uniform(0, 255, shape) * contrast).astype("float32")


def predict(model, batch):
    """The model's predictions, image by image."""
    return model.predict(batch, batch_size=1, verbose=0)


def write(form, case, folder):
    """Writes the case's model as a file and returns its path."""
    model, signature = small_model(**CASES[case].options), CASES[case].signature
    path = folder / f"model{FORMATS[form].suffix}"
    if form == "keras":
        model.save(path)
    elif signature is None:
        model.export(path, form)
    else:
        model.export(path, form, input_signature=[keras.InputSpec(shape=signature, dtype="float32")])
    return str(path)


def assert_agrees(case, run, path):
    """Asserts that `run` gives the case's input shape and, for each batch, what the model predicts."""
    model = small_model(**CASES[case].options)
    batches = [images(*shape) for shape in CASES[case].batches]
    declared, outputs = run(path, batches)
    assert declared == (CASES[case].signature or model.input_shape)
    for batch, output in zip(batches, outputs, strict=True):
        np.testing.assert_allclose(output, predict(model, batch), rtol=0, atol=TOLERANCE)


def test_the_readme_says_what_is_tried_here():
    _, table, _ = re.split("<!-- /?exports -->", README.read_text())
    assert table.strip() == readme_table()


@pytest.mark.parametrize(
    ("form", "case"),
    [
        *((form, case) for form in FORMATS if form != "keras" for case in HERE[form].works),
        *(pytest.param(form, case, marks=pytest.mark.slow) for form in FORMATS for case in HERE[form].slow),
    ],
)
def test_an_exported_file_agrees_with_the_model(form, case, fresh_process, tmp_path):
    path = write(form, case, tmp_path)
    assert_agrees(case, functools.partial(fresh_process, FORMATS[form].run), path)
    if form == "litert":
        used, built_in = fresh_process(export_worker.tflite_ops, path)
        assert used <= built_in


@pytest.mark.parametrize(("form", "case"), [(form, case) for form in FORMATS for case in HERE[form].fails])
def test_what_cannot_be_exported_says_why(form, case, tmp_path):
    error, message = HERE[form].fails[case]
    with pytest.raises(error, match=message):
        write(form, case, tmp_path)


@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend != BACKEND])
def test_a_keras_file_loads_under_the_other_backends(backend, fresh_process, tmp_path):
    path = write("keras", "any batch", tmp_path)
    assert_agrees("any batch", functools.partial(fresh_process, export_worker.run_keras_file, backend=backend), path)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow exports TFLite itself")
def test_a_keras_file_becomes_tflite_under_tensorflow(fresh_process, tmp_path):
    path = str(tmp_path / "model.tflite")
    keras_file = write("keras", "any batch", tmp_path)
    fresh_process(export_worker.keras_file_to_tflite, keras_file, path, backend="tensorflow")
    assert_agrees("any batch", functools.partial(fresh_process, export_worker.run_tflite), path)
    used, built_in = fresh_process(export_worker.tflite_ops, path)
    assert used <= built_in


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow exports TFLite itself")
def test_mixed_precision_needs_flex_ops_in_tflite(fresh_process, tmp_path):
    path = str(tmp_path / "model.tflite")
    small_model(**MIXED).export(path, "litert")
    used, built_in = fresh_process(export_worker.tflite_ops, path)
    assert any(op.startswith("Flex") for op in used - built_in)


def quantizations():
    """What the exporter passes to TensorFlow's converter for smaller files."""
    import tensorflow as tf

    smaller = dict(optimizations=[tf.lite.Optimize.DEFAULT])
    calibration = [[image[None]] for image in images(4, 65, 97, 3)]
    int8 = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]}
    return {
        "float16": {**smaller, "target_spec": {"supported_types": [tf.float16]}},
        "full int8": {**smaller, "representative_dataset": lambda: iter(calibration), "target_spec": int8},
    }


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow exports TFLite itself")
def test_small_files_are_small_have_built_in_ops_only_and_stay_close(fresh_process, tmp_path):
    model, shape = small_model(tiny_dfvt, depths=(2, 1, 1, 1), input_shape=(65, 97, 3)), (1, 65, 97, 3)
    signature = [keras.InputSpec(shape=shape, dtype="float32")]
    expected = predict(model, images(*shape))

    def export(name, **options):
        path = tmp_path / f"{name}.tflite"
        model.export(str(path), "litert", input_signature=signature, **options)
        return path

    large = export("large").stat().st_size
    for quantization, size, tolerance in [("float16", 0.52, 0.01), ("full int8", 0.36, 0.3)]:
        path = export(quantization, **quantizations()[quantization])
        assert path.stat().st_size < size * large, quantization
        used, built_in = fresh_process(export_worker.tflite_ops, str(path))
        assert used <= built_in, quantization
        _, (found,) = fresh_process(export_worker.run_tflite, str(path), [images(*shape)])
        assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected), quantization


def test_training_mode_would_show():
    """BatchNorm in training mode, or another image, changes the predictions by far more than the tolerance."""
    model, batch = small_model(**CLASSIFIER), images(2, 65, 97, 3)
    train = functools.partial(model.stateless_call, training=True)
    if BACKEND == "jax":
        # Operation by operation, JAX compiles for three times as long.
        import jax

        train = jax.jit(train)
    variables = (model.trainable_variables, model.non_trainable_variables)
    trained, _ = train(*([variable.value for variable in group] for group in variables), batch)
    expected = predict(model, batch)
    assert np.abs(keras.ops.convert_to_numpy(trained) - expected).max() > 100 * TOLERANCE
    assert np.abs(expected[0] - expected[1]).max() > 100 * TOLERANCE
