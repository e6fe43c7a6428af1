"""The models that are measured, each as a step of inference and one of training. Runs in the worker's process."""

import contextlib
import functools
import importlib
import pathlib
import sys
import tempfile
import time
from unittest import mock

import numpy as np

LEARNING_RATE = 1e-3
CLASSES = 1000

DFVT_BASE = dict(embed_dim=128, depths=[2, 2, 6, 2], num_heads=[4, 8, 16, 32], mlp_ratio=2.0, drop_path_rate=0.2)

# Where the published code of a variant is, under the folder of checkouts: path to import from, module, maker, options.
REFERENCES = {
    "DSNetT": ("DS-Net", "models", "ds_net_tiny", {}),
    "DSNetS": ("DS-Net", "models", "ds_net_small", {}),
    # The repository names no base; the paper gives its depths.
    "DSNetB": ("DS-Net", "models", "MixVisionTransformer", {"depth": [3, 4, 28, 3]}),
    "DualViTS": ("ImageNetModel/classification", "dualvit", "dualvit_s", {"token_label": False}),
    "DualViTB": ("ImageNetModel/classification", "dualvit", "dualvit_b", {"token_label": False}),
    "DualViTL": ("ImageNetModel/classification", "dualvit", "dualvit_l", {"token_label": False}),
    "DFvTT": (
        "DFvT",
        "models.DFvT",
        "DFvT",
        dict(embed_dim=48, depths=[1, 1, 2, 1], mlp_ratio=4.0, drop_path_rate=0.0),
    ),
    "DFvTS": (
        "DFvT",
        "models.DFvT",
        "DFvT",
        dict(embed_dim=96, depths=[1, 1, 2, 1], mlp_ratio=2.0, drop_path_rate=0.1),
    ),
    "DFvTB": ("DFvT", "models.DFvT", "DFvT", DFVT_BASE),
    "TransXNetT": ("TransXNet", "models.transxnet", "transxnet_t", {}),
    "TransXNetS": ("TransXNet", "models.transxnet", "transxnet_s", {}),
    "TransXNetB": ("TransXNet", "models.transxnet", "transxnet_b", {}),
}


def load(subject, settings, reference):
    """Imports what a subject needs, and has the framework do its first operation.

    Args:
        subject: `Subject`.
        settings: `Settings`.
        reference: path of the folder with the checkouts of the published code, or `None`.

    Returns:
        A function that builds the model, and the seconds that the framework took to import and the rest.
    """
    start = time.perf_counter()
    if subject.source == "reference":
        import torch  # noqa: F401

        middle = time.perf_counter()
        folder, module, name, options = REFERENCES[subject.model]
        sys.path.insert(0, str(pathlib.Path(reference) / folder))
        maker = getattr(importlib.import_module(module), name)
        build = lambda: TorchModel(maker(**options), subject, settings)  # noqa: E731
    else:
        import keras

        middle = time.perf_counter()
        if settings.precision != "float32":
            keras.config.set_dtype_policy(f"mixed_{settings.precision}")
        module = {"naive": "keras_dualstream", "keras_applications": "keras"}.get(subject.source, subject.source)
        importlib.import_module(module)
        build = lambda: KerasModel(keras_model(subject, settings), subject, settings)  # noqa: E731
    end = time.perf_counter()
    _multiply_once(subject)
    return build, middle - start, end - middle


def _multiply_once(subject):
    """A first operation, at which a framework sets up its devices: 50 MB on JAX, which are the library's."""
    if subject.source == "reference":
        import torch

        torch.ones(2, 2) @ torch.ones(2, 2)
    else:
        import keras

        keras.ops.convert_to_numpy(keras.ops.matmul(keras.ops.ones((2, 2)), keras.ops.ones((2, 2))))


def keras_model(subject, settings):
    """The Keras model of a subject, giving logits."""
    shape = (settings.height, settings.width, 3)
    if subject.source == "keras_applications":
        import keras

        return keras.applications.ConvNeXtTiny(weights=None, input_shape=shape, classifier_activation=None)
    if subject.source == "keras_hub":
        import keras_hub

        # Swin-T, whose sizes only its weights' presets have, and those are a download.
        backbone = keras_hub.models.SwinTransformerBackbone(
            image_shape=shape, embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=7
        )
        return keras_hub.models.SwinTransformerImageClassifier(backbone, CLASSES)
    import keras_dualstream

    # The token-label head trains by a loss of its own.
    head = {"token_label_head": False} if subject.model.startswith("DualViT") else {}
    return getattr(keras_dualstream, subject.model)(input_shape=shape, classifier_activation=None, **head)


class KerasModel:
    """A Keras model as `predict_on_batch` and `train_on_batch` run it, several batches as `predict` and `fit` do."""

    def __init__(self, model, subject, settings):
        import keras

        self.ops, self.backend, self.settings = keras.ops, keras.config.backend(), settings
        self.model, self.subject = model, subject
        self.parameters = model.count_params()
        self.context = naive_forms if subject.source == "naive" else contextlib.nullcontext
        compiled = "auto" if subject.backend == "jax" else subject.backend in ("tensorflow-xla", "torch-compile")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(LEARNING_RATE), loss, jit_compile=compiled)
        images, labels = batch(settings)
        # On the device already, as a good input pipeline would have them.
        self.images, self.labels = keras.ops.convert_to_tensor(images), keras.ops.convert_to_tensor(labels)

    def inference(self):
        """A prediction of each batch, with its result on the host."""
        with self.context():
            return self._predict()

    def training(self):
        """A step of stochastic gradient descent for each batch, with the loss on the host."""
        with self.context():
            return self._fit()

    @functools.cached_property
    def _predict(self):
        """The function of no arguments that predicts as the README tells users to."""
        if self.subject.backend == "torch-compile":
            program, images = compiled_program(self.model, self.images), [self.images] * self.settings.batches
            return lambda: np.concatenate([result.cpu() for result in [program(x) for x in images]])
        if self.settings.batches == 1:
            return lambda: self.model.predict_on_batch(self.images)
        count = self.settings.batches
        return lambda: self.model.predict(self._batches(self.images), steps=count, verbose=0)

    def _fit(self):
        if self.settings.batches == 1:
            return float(self.model.train_on_batch(self.images, self.labels))
        data, count = self._batches(self.images, self.labels), self.settings.batches
        return self.model.fit(data, steps_per_epoch=count, shuffle=False, verbose=0).history["loss"][-1]

    def _batches(self, *tensors):
        """The same batch again and again, which is on the device already."""
        if self.backend == "tensorflow":
            import tensorflow as tf

            # Keras would copy what a generator gives through the host.
            return tf.data.Dataset.from_tensors(tensors).repeat(self.settings.batches)
        return (tensors for _ in range(self.settings.batches))

    def macs(self):
        """Multiplications and additions of one image, where PyTorch can count them; otherwise `None`."""
        if self.backend != "torch" or self.settings.device != "cpu":
            return None
        return count_macs(lambda: self.model(self.images[:1], training=False))

    def multiply(self, size):
        """As many products of square matrices, in the precision of the run, as a step has batches."""
        matrix = self.ops.convert_to_tensor(random_matrix(size), dtype=self.settings.precision)
        return lambda: float([self.ops.matmul(matrix, matrix) for _ in range(self.settings.batches)][-1][0, 0])


class TorchModel:
    """A PyTorch model, eager or compiled."""

    def __init__(self, model, subject, settings):
        import torch

        self.torch, self.settings = torch, settings
        self.device = torch.device("cuda" if settings.device == "gpu" else "cpu")
        # What PyTorch's own guide recommends for convolutions on a GPU; on a CPU the published code runs as it is.
        layout = torch.channels_last if settings.device == "gpu" else torch.preserve_format
        self.model = model.to(self.device, memory_format=layout)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.forward = torch.compile(self.model) if subject.backend == "torch-compile" else self.model
        self.optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
        images, labels = batch(settings)
        images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy() / 255)
        self.images = images.to(self.device, memory_format=layout)
        self.labels = torch.from_numpy(labels).long().to(self.device)

    def _precision(self):
        dtype = getattr(self.torch, self.settings.precision)
        return self.torch.autocast(self.device.type, dtype, enabled=dtype != self.torch.float32)

    def inference(self):
        """A prediction of each batch, with its result on the host."""
        self.model.eval()
        with self.torch.no_grad(), self._precision():
            results = [self.forward(self.images).float() for _ in range(self.settings.batches)]
        return np.concatenate([result.cpu() for result in results])

    def training(self):
        """A step of stochastic gradient descent for each batch, with the last loss on the host."""
        self.model.train()
        for _ in range(self.settings.batches):
            self.optimizer.zero_grad()
            with self._precision():
                loss = self.torch.nn.functional.cross_entropy(self.forward(self.images), self.labels)
            loss.backward()
            self.optimizer.step()
        return loss.item()

    def macs(self):
        """Multiplications and additions of one image."""
        self.model.eval()
        return count_macs(lambda: self.model(self.images[:1]))

    def multiply(self, size):
        """As many products of square matrices, in the precision of the run, as a step has batches."""
        matrix = self.torch.from_numpy(random_matrix(size))
        matrix = matrix.to(self.device, getattr(self.torch, self.settings.precision))
        return lambda: [matrix @ matrix for _ in range(self.settings.batches)][-1][0, 0].item()


def compiled_program(model, images):
    """What PyTorch compiles of the program that Keras exports: one whole, which `jit_compile=True` does not give."""
    import keras
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.pt2"
        signature = [keras.InputSpec(shape=tuple(images.shape), dtype="float32")]
        model.export(path, format="torch", input_signature=signature, verbose=False)
        compiled = torch.compile(torch.export.load(path).module())

    def predict(images):
        with torch.no_grad():
            return compiled(images).float()

    return predict


def batch(settings):
    """Random images in [0, 255] and labels."""
    rng = np.random.default_rng(0)
    images = 255 * rng.random((settings.batch, settings.height, settings.width, 3)).astype("float32")
    return images, rng.integers(CLASSES, size=settings.batch).astype("int32")


def random_matrix(size):
    """A square matrix; a GPU multiplies equal numbers faster than others."""
    return np.random.default_rng(0).standard_normal((size, size), "float32")


def count_macs(run):
    """Multiply-adds of the convolutions and matrix products that PyTorch runs in a call."""
    import torch
    from torch.nn import attention
    from torch.utils.flop_counter import FlopCounterMode

    # The counter does not know the fused attention of CPUs.
    plain = attention.sdpa_kernel(attention.SDPBackend.MATH)
    # With gradients, as its hooks need them where a parameter goes straight into a module.
    with torch.enable_grad(), plain, FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2


@contextlib.contextmanager
def naive_forms():
    """A context in which the layers use Keras' own depthwise forms, when they are traced or, on PyTorch, run."""
    from keras_dualstream.layers import depthwise_conv
    from keras_dualstream.layers import id_conv
    from keras_dualstream.layers import ms_ffn

    with (
        mock.patch.object(depthwise_conv, "depthwise_conv2d", naive_depthwise_conv2d),
        mock.patch.object(id_conv, "dynamic_depthwise_conv2d", naive_dynamic_depthwise_conv2d),
        mock.patch.object(ms_ffn, "convolves_parts_at_once", return_value=False),
    ):
        yield


def naive_depthwise_conv2d(x, kernel, strides, padding, dilation_rate, data_format, bias, residual):
    """`ops.depthwise_conv` behind `ops.pad`."""
    from keras import ops

    padded = x
    if not isinstance(padding, str):
        padded, padding = ops.pad(x, ((0, 0), *padding, (0, 0))), "valid"
    y = ops.depthwise_conv(padded, kernel, strides, padding, data_format, dilation_rate)
    y = y if bias is None else y + bias
    return x + y if residual else y


def naive_dynamic_depthwise_conv2d(x, kernel):
    """One kernel per sample as one depthwise convolution whose channels are those of all samples."""
    from keras import ops

    count, height, width, channels = ops.shape(x)
    x = ops.reshape(ops.transpose(x, (1, 2, 0, 3)), (1, height, width, count * channels))
    taps = ops.reshape(ops.transpose(kernel, (1, 2, 0, 3)), (*kernel.shape[1:3], count * channels, 1))
    y = ops.depthwise_conv(x, taps, 1, "same", data_format="channels_last")
    return ops.transpose(ops.reshape(y, (height, width, count, channels)), (2, 0, 1, 3))
