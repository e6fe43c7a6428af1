"""The steps in which a functional model's graph is walked through."""

import collections

import keras

# A node of a graph, and the `id`s of the tensors that are read after it.
Step = collections.namedtuple("Step", "node read_later")


def steps_of(model):
    """The nodes of a graph in their order.

    Args:
        model: functional `keras.Model`.

    Returns:
        Iterator of `Step`.
    """
    depths = sorted(model._nodes_by_depth, reverse=True)
    nodes = [node for depth in depths for node in model._nodes_by_depth[depth] if not node.is_input]
    steps, read = [], {id(x) for x in model.outputs}
    for node in reversed(nodes):
        steps.append(Step(node, read))
        read = read - {id(x) for x in node.outputs} | {id(x) for x in node.input_tensors}
    return reversed(steps)


def hands_on(last, step):
    """Whether what a step gives is read by the next alone, in place of the first of the same arguments.

    Args:
        last: `Step`.
        step: `Step` after it.

    Returns:
        bool.
    """
    results = last.node.outputs
    args, following = _arguments(last.node), _arguments(step.node)
    if args is None or following is None or any(id(x) in step.read_later for x in results):
        return False
    return list(map(id, [*results, *args[len(results) :]])) == list(map(id, following))


def _arguments(node):
    """A node's arguments, `None` where some have names or are no tensors."""
    args = keras.tree.flatten(node.arguments.args)
    return None if node.arguments.kwargs or not all(isinstance(x, keras.KerasTensor) for x in args) else args
