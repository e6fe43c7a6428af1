"""Calls of layers inside other layers, on PyTorch without what Keras looks at again at each of them."""

import keras
from keras import ops

from keras_dualstream.ops.compiler import watched_by_pytorch

try:
    from keras.src.backend.common.global_state import get_global_attribute
except ImportError:  # Another Keras may keep it elsewhere: every call then goes Keras' way.
    get_global_attribute = None


class NestedCall:
    """Base of layers that go straight to `call` where Keras' `__call__` would change nothing.

    Keras converts arguments, binds signatures, opens scopes and looks for masks
    whenever a layer is called: 0.17 ms on PyTorch, which runs that Python at every
    step; 748 calls of TransXNet-T are a fifth of its time at batch 8. The outermost
    layer has done it for all that it contains. Whatever needs Keras' way, such as
    other dtypes, quantisation, masks, hooks or layers that are not built, still
    goes it; so do TensorFlow and JAX, which call layers once, to trace them.
    """

    def __call__(self, *args, **kwargs):
        if keras.config.backend() != "torch" or get_global_attribute is None:
            return super().__call__(*args, **kwargs)
        if watched_by_pytorch(self):
            # A copy, because activations overwrite what they are given, and a hook may have kept it.
            return keras.tree.map_structure(ops.copy, super().__call__(*args, **kwargs))
        context = get_global_attribute("current_call_ctx")
        training = getattr(context, "training", None)
        if context is None or not (_is_plain(self) and _has_plain_arguments(self, args, kwargs, training)):
            return super().__call__(*args, **kwargs)
        if self.input_spec is not None:
            self._assert_input_compatibility(args[0])
        options = {name: value for name, value in kwargs.items() if name != "training"}
        if training is not None and self._call_has_training_arg:
            options["training"] = training
        return self.call(*args, **options)


def _is_plain(layer):
    """Whether Keras would do no more with this layer than call it."""
    scope = get_global_attribute("autocast_scope")
    variables_as = layer.variable_dtype if scope is None else scope.dtype
    return (
        layer.built
        and layer.compute_dtype == variables_as
        # Without autocasting, Keras lifts the scope of the layer around, which may cast variables.
        and (layer.autocast or layer.compute_dtype == layer.variable_dtype)
        and layer.activity_regularizer is None
        and getattr(layer, "quantization_mode", None) is None
        and getattr(layer, "_remat_mode", None) is None
        and set(getattr(layer, "_call_context_args", ())) <= {"training"}
    )


def _has_plain_arguments(layer, args, kwargs, training):
    """Whether the arguments are tensors of the layer's dtype without masks, and the mode that of the layer around."""
    dtype = "torch." + layer.compute_dtype
    if not args or not set(kwargs) <= {"training", "overwrite"} or kwargs.get("training", training) != training:
        return False
    return all(ops.is_tensor(x) and str(x.dtype) == dtype and not hasattr(x, "_keras_mask") for x in args)
