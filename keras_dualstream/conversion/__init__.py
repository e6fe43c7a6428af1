"""PyTorch checkpoints to Keras models, and back."""

from keras_dualstream.conversion.checkpoint import load_checkpoint
from keras_dualstream.conversion.checkpoint import to_torch_state_dict

__all__ = ["load_checkpoint", "to_torch_state_dict"]
