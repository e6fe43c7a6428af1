"""Dual-stream vision backbones for Keras."""

from keras_dualstream import conversion
from keras_dualstream import layers
from keras_dualstream.models.classifier import ImageClassifier
from keras_dualstream.models.dfvt import DFvTB
from keras_dualstream.models.dfvt import DFvTBackbone
from keras_dualstream.models.dfvt import DFvTS
from keras_dualstream.models.dfvt import DFvTT
from keras_dualstream.models.ds_fpn import DSFPN
from keras_dualstream.models.dsnet import DSNetB
from keras_dualstream.models.dsnet import DSNetBackbone
from keras_dualstream.models.dsnet import DSNetS
from keras_dualstream.models.dsnet import DSNetT
from keras_dualstream.models.dualvit import DualViTB
from keras_dualstream.models.dualvit import DualViTBackbone
from keras_dualstream.models.dualvit import DualViTL
from keras_dualstream.models.dualvit import DualViTS
from keras_dualstream.models.retinanet import RetinaNet
from keras_dualstream.models.transxnet import TransXNetB
from keras_dualstream.models.transxnet import TransXNetBackbone
from keras_dualstream.models.transxnet import TransXNetS
from keras_dualstream.models.transxnet import TransXNetT
from keras_dualstream.presets.catalogue import list_presets
from keras_dualstream.presets.classification import decode_predictions
from keras_dualstream.presets.classification import preprocess_input
from keras_dualstream.presets.preprocessing import Preprocessing

__version__ = "0.1.0"

__all__ = [
    "DFvTB",
    "DFvTBackbone",
    "DFvTS",
    "DFvTT",
    "DSFPN",
    "DSNetB",
    "DSNetBackbone",
    "DSNetS",
    "DSNetT",
    "DualViTB",
    "DualViTBackbone",
    "DualViTL",
    "DualViTS",
    "ImageClassifier",
    "Preprocessing",
    "RetinaNet",
    "TransXNetB",
    "TransXNetBackbone",
    "TransXNetS",
    "TransXNetT",
    "conversion",
    "decode_predictions",
    "layers",
    "list_presets",
    "preprocess_input",
]
