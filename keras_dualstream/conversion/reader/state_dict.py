"""Which of the dicts in a checkpoint holds the weights, and what to cut from its names."""

# Where training scripts keep the weights, most usual first; averaged weights only where there are no others.
ENTRIES = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights", "params", "module")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")

# What PyTorch puts before every name: `DataParallel` and `torch.compile`.
WRAPPERS = ("module.", "_orig_mod.")

MOST_DICTS = 20


def find_state_dict(tree, as_tensor, entry=None):
    """The dict of a checkpoint that holds the weights by name.

    Args:
        tree: the checkpoint, a dict of dicts.
        as_tensor: function from a value to the tensor that it is, or to `None`.
        entry: str. Which of the dicts to take; `None` for the usual one.
            Defaults to `None`.

    Returns:
        Dict from names to tensors, whatever else was in it left out.

    Raises:
        ValueError: if there is none.
    """
    if not isinstance(tree, dict):
        raise ValueError("it holds no dict of tensors")
    if entry is not None:
        if not isinstance(tree.get(entry), dict):
            raise ValueError(f"it has no dict {entry!r}. It has: {_listed(tree)}")
        tree = tree[entry]
    tensors = _first_tensors(tree, as_tensor, seen=[])
    if tensors is None:
        raise ValueError(
            f"it has no tensors under a known name; give the `entry` that holds them. It has: {_listed(tree)}"
        )
    if any(not isinstance(name, str) for name in tensors):
        raise ValueError("it has tensors under what is no name")
    return tensors


def _first_tensors(tree, as_tensor, seen):
    """The tensors of the innermost usual dict that has any, or `None`; each dict is looked at once."""
    seen.append(tree)
    for name in ENTRIES + AVERAGED:
        inner = tree.get(name)
        # A file may hold a dict in itself, and many in one another.
        if isinstance(inner, dict) and len(seen) < MOST_DICTS and not any(inner is other for other in seen):
            tensors = _first_tensors(inner, as_tensor, seen)
            if tensors is not None:
                return tensors
    tensors = {name: as_tensor(value) for name, value in tree.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None} or None


def without_wrappers(state_dict):
    """The dict with the prefixes cut off that all of its names have, such as `module.`."""
    for prefix in WRAPPERS * 2:
        if state_dict and all(name.startswith(prefix) for name in state_dict):
            state_dict = {name.removeprefix(prefix): value for name, value in state_dict.items()}
    return state_dict


def _listed(tree, most=8):
    names = [name[:40] for name in tree if isinstance(name, str)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
