"""What a fresh process does with a file that a model left behind.

The functions import what they need themselves: a process that opens an
exported file knows TensorFlow, LiteRT or PyTorch, but not this package.
"""

import contextlib
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


@contextlib.contextmanager
def fresh_processes():
    """Gives `run(function, *args, backend=None)`, which calls a function of this module in a fresh process.

    One process serves all calls for the same `backend`, the Keras backend of
    those that open `.keras` files; importing takes longer than the calls.
    """
    with contextlib.ExitStack() as stack:
        pools = {}

        def run(function, *args, backend=None):
            if backend not in pools:
                pool = ProcessPoolExecutor(1, get_context("spawn"), _start, (backend,))
                pools[backend] = stack.enter_context(pool)
            return pools[backend].submit(function, *args).result()

        yield run


def _start(backend):
    os.environ.pop("KERAS_BACKEND", None)
    if backend is not None:
        os.environ["KERAS_BACKEND"] = backend
    if backend == "jax":
        # JAX compiles for longer than it runs.
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"


def run_saved_model(path, batches):
    """The shape that a SavedModel declares for its input, and its outputs."""
    import tensorflow as tf

    model = tf.saved_model.load(path)
    (declared,) = model.serve.concrete_functions[0].structured_input_signature[0]
    outputs = [model.serve(batch).numpy() for batch in batches]
    return _standalone(tuple(declared.shape), outputs)


def run_tflite(path, batches):
    """The shape that a TFLite file declares for its input, and its outputs."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)
    (images,), (predictions,) = interpreter.get_input_details(), interpreter.get_output_details()
    declared = tuple(None if size == -1 else int(size) for size in images["shape_signature"])
    outputs = []
    for batch in batches:
        interpreter.resize_tensor_input(images["index"], batch.shape, strict=True)
        interpreter.allocate_tensors()
        interpreter.set_tensor(images["index"], batch)
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(predictions["index"]))
    return _standalone(declared, outputs)


def tflite_ops(path):
    """The names of a TFLite file's operators: those that it uses, and all built-in ones."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    used = {op["op_name"] for op in Interpreter(path)._get_ops_details()}
    return used, {name for name in vars(BuiltinOperator) if name.isupper()} - {"CUSTOM"}


def run_torch_program(path, batches):
    """The shape that an exported PyTorch program declares for its input, and its outputs."""
    import torch

    program = torch.export.load(path)
    (images,) = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    declared = tuple(size if isinstance(size, int) else None for size in images.meta["val"].shape)
    outputs = [program.module()(torch.from_numpy(batch)).detach().numpy() for batch in batches]
    return _standalone(declared, outputs)


def _standalone(declared, outputs):
    if "keras_dualstream" in sys.modules:
        raise RuntimeError("An exported file must run without this package.")
    return declared, outputs


def run_keras_file(path, batches):
    """The shape of a `.keras` file's input, and its predictions."""
    model = _load(path)
    return model.input_shape, [model.predict(batch, batch_size=1, verbose=0) for batch in batches]


def keras_file_to_tflite(path, tflite_path):
    """Exports a `.keras` file as TFLite."""
    _load(path).export(tflite_path, "litert")


def _load(path):
    import keras

    import keras_dualstream  # noqa: F401  registers the classes

    return keras.saving.load_model(path)
