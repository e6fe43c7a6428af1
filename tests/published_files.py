"""Checkpoint files as the authors' training scripts wrote them, of any model."""

import argparse
import collections
import pickle
import sys
import types

from keras_dualstream.conversion import to_torch_state_dict
from keras_dualstream.presets.catalogue import PRESETS


def write_published(path, name, model):
    """Writes the weights of a model in the file layout of a preset.

    Args:
        path: path of the file.
        name: str. A preset, whose layout it is.
        model: of that preset's family.

    Returns:
        `path`.
    """
    arrays = to_torch_state_dict(model)
    if PRESETS[name].format == "paddle":
        with open(path, "wb") as file:
            pickle.dump(as_paddle(arrays), file, protocol=4)
        return path
    import torch

    weights = collections.OrderedDict((key, torch.tensor(array)) for key, array in arrays.items())
    arguments = argparse.Namespace(model=name, lr=1e-3)
    optimizer = {"state": {0: {"exp_avg": torch.ones(7)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    with yacs() as config:
        layouts = {
            "DFvT": {"model": weights, "optimizer": optimizer, "lr_scheduler": {"step": 3}, "config": config},
            "DSNet": {"model": weights, "args": arguments},
            "DualViT": {"epoch": 299, "arch": name, "state_dict": weights, "metric": 84.1},
            "TransXNet": {"epoch": 299, "state_dict": weights, "args": arguments, "optimizer": optimizer},
        }
        torch.save(layouts[PRESETS[name].variant[:-1]], path)
    return path


class yacs:
    """A `CfgNode` of a package that is installed only here."""

    def __enter__(self):
        class CfgNode(dict):
            pass

        CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
        self.modules = {"yacs": types.ModuleType("yacs"), "yacs.config": types.ModuleType("yacs.config")}
        self.modules["yacs.config"].CfgNode = CfgNode
        sys.modules.update(self.modules)
        return CfgNode(MODEL=CfgNode(TYPE="swin"))

    def __exit__(self, *error):
        for name in self.modules:
            del sys.modules[name]


def as_paddle(state_dict):
    """The state dict as a Paddle port of the network has it."""
    names = {"running_mean": "_mean", "running_var": "_variance"}
    paddle = {}
    for name, array in state_dict.items():
        module, _, last = name.rpartition(".")
        is_linear = last == "weight" and array.ndim == 2
        if last != "num_batches_tracked":
            paddle[f"{module}.{names.get(last, last)}" if module else last] = array.T if is_linear else array
    return paddle
