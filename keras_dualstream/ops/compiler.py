"""What will run the operations that are being traced."""

import sys

import keras

EXPORTERS = "keras.src.export."
LITERT_EXPORTER = "keras.src.export.litert"
JAX_TO_TENSORFLOW = "jax.experimental.jax2tf.jax2tf"
TENSORFLOW_TRAINER = "keras.src.backend.tensorflow.trainer"


def compiled_by_xla():
    """Whether XLA will compile the operations that follow: always on JAX, under `jit_compile=True` on TensorFlow."""
    if keras.config.backend() == "jax":
        return True
    if keras.config.backend() != "tensorflow":
        return False
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util

    # TensorFlow has no public question for this; Keras asks it of the same module.
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def xla_on_cpu():
    """Whether XLA will compile the operations that follow for a CPU."""
    return compiled_by_xla() and not _has_gpu()


def jax_on_cpu():
    """Whether JAX will compile the operations that follow for a CPU."""
    return keras.config.backend() == "jax" and not _has_gpu()


def tensorflow_on_cpu():
    """Whether TensorFlow's own CPU kernels will run the operations that follow."""
    return keras.config.backend() == "tensorflow" and not _has_gpu()


def in_tensorflow_graph():
    """Whether TensorFlow's own kernels will run the operations that follow, as a graph."""
    if keras.config.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.executing_eagerly() and not compiled_by_xla()


def in_a_step_on_tensorflow():
    """Whether `fit`, `evaluate` or `predict` traces the operations that follow, for TensorFlow's own kernels."""
    return in_tensorflow_graph() and _called_from(TENSORFLOW_TRAINER)


def in_tensorflow_graph_without_gradient():
    """Whether TensorFlow's own CPU kernels will run the operations that follow, as a graph under no gradient tape."""
    if not in_tensorflow_graph() or not tensorflow_on_cpu():
        return False
    from tensorflow.python.eager import record

    return not record.could_possibly_record()


def predicted_by_tensorflow():
    """Whether `predict` or `evaluate` traces the operations that follow, for TensorFlow's own CPU kernels.

    Not where several devices share the work, nor under a gradient tape.
    """
    if not in_tensorflow_graph_without_gradient() or not in_a_step_on_tensorflow():
        return False
    import tensorflow as tf

    return not tf.distribute.has_strategy()


def _has_gpu():
    """Whether JAX or TensorFlow computes on a GPU."""
    if keras.config.backend() == "jax":
        import jax

        return jax.default_backend() != "cpu"
    import tensorflow as tf

    return bool(tf.config.get_visible_devices("GPU"))


def compiled_by_pytorch():
    """Whether `torch.compile` or one of PyTorch's exporters traces the operations that follow."""
    if keras.config.backend() != "torch":
        return False
    import torch

    return torch.compiler.is_compiling()


def pytorch_runs_inference():
    """Whether PyTorch runs operations as they are called, and no backward pass follows.

    So that they may write over what they are given.
    """
    import torch

    return not torch.is_grad_enabled() and pytorch_runs_as_called()


def pytorch_runs_as_called():
    """Whether PyTorch runs operations as they are called, and nothing transforms or records them.

    A compiler finds room for results itself; writing into a part of a map is several operations to an exporter;
    transforms such as `torch.func.vmap` know no results with a place.
    """
    import torch

    if compiled_by_pytorch() or torch.jit.is_tracing():
        return False
    # PyTorch has no public question for its transforms, nor need its compiler understand this one.
    return not torch._C._are_functorch_transforms_active() and torch.autograd.forward_ad._current_level < 0


def watched_by_pytorch(layer):
    """Whether PyTorch does more than call a layer when it is called: runs hooks, or a compiled form of it."""
    if keras.config.backend() != "torch":
        return False
    from torch.nn.modules import module

    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks) or layer._compiled_call_impl is not None or bool(module._has_any_global_hook())


def exporting():
    """Whether one of Keras' exporters traces the operations that follow."""
    return _called_from(EXPORTERS)


def exporting_to_litert():
    """Whether Keras' LiteRT exporter traces the operations that follow."""
    return _called_from(LITERT_EXPORTER)


def converting_jax_to_tensorflow():
    """Whether JAX traces the operations that follow for TensorFlow, as Keras' SavedModel exporter has it do."""
    return _called_from(JAX_TO_TENSORFLOW)


def _called_from(modules):
    """Whether a module of this beginning is among the callers: exporters tell nobody else, neither model nor layers."""
    frame = sys._getframe()
    while frame is not None and not str(frame.f_globals.get("__name__")).startswith(modules):
        frame = frame.f_back
    return frame is not None
