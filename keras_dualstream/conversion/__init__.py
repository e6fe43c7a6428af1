"""PyTorch and Paddle checkpoints to Keras models, and back."""

from keras_dualstream.conversion.checkpoint import load_checkpoint
from keras_dualstream.conversion.checkpoint import to_torch_state_dict
from keras_dualstream.conversion.reader.read_checkpoint import read_checkpoint

__all__ = ["load_checkpoint", "read_checkpoint", "to_torch_state_dict"]
