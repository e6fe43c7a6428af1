"""Which of the dicts in a checkpoint holds the weights, and what to cut from its names."""

# Where training scripts keep the weights, most usual first; averaged weights only where there are no others.
ENTRIES = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights", "params", "module")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")

# What PyTorch puts before every name: `DataParallel` and `torch.compile`.
WRAPPERS = ("module.", "_orig_mod.")


def find_state_dict(tree, is_tensor, entry=None, depth=4):
    """The dict of a checkpoint that holds the weights by name.

    Args:
        tree: the checkpoint, a dict of dicts.
        is_tensor: function that tells whether a value is a tensor.
        entry: str. Which of the dicts to take; `None` for the usual one.
            Defaults to `None`.
        depth: int. How many dicts may be around it. Defaults to `4`.

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
    for name in ENTRIES + AVERAGED:
        if isinstance(tree.get(name), dict) and depth > 0:
            try:
                return find_state_dict(tree[name], is_tensor, depth=depth - 1)
            except ValueError:
                continue
    tensors = {name: value for name, value in tree.items() if is_tensor(value)}
    if not tensors:
        raise ValueError(
            f"it has no tensors under a known name; give the `entry` that holds them. It has: {_listed(tree)}"
        )
    if any(not isinstance(name, str) for name in tensors):
        raise ValueError("it has tensors under what is no name")
    return tensors


def without_wrappers(state_dict):
    """The dict with the prefixes cut off that all of its names have, such as `module.`."""
    for prefix in WRAPPERS * 2:
        if state_dict and all(name.startswith(prefix) for name in state_dict):
            state_dict = {name.removeprefix(prefix): value for name, value in state_dict.items()}
    return state_dict


def _listed(tree, most=8):
    names = [name[:40] for name in tree if isinstance(name, str)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
