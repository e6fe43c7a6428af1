"""What loading and writing a checkpoint asks of a family."""

import dataclasses
from collections.abc import Callable


def _no_names(backbone):
    return ()


def _no_tensors(model):
    return {}


@dataclasses.dataclass(frozen=True)
class Family:
    """Where the checkpoints of a family keep what.

    Args:
        checkpoint_tensors: function from a model to the list of its `Tensor`s.
        head_prefixes: tuple of str. How the names of the head's tensors begin.
        left_out_prefixes: function from a backbone to a tuple of str: how the
            names begin that it leaves out by its options. Defaults to none.
        derived_tensors: function from a model to a dict of the arrays that
            follow from its options. Defaults to none.
        position_tables: tuple of str. How the names of tables begin that are
            resized to other images. Defaults to none.
    """

    checkpoint_tensors: Callable
    head_prefixes: tuple
    left_out_prefixes: Callable = _no_names
    derived_tensors: Callable = _no_tensors
    position_tables: tuple = ()
