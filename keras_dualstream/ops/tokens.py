"""Feature maps as token sequences and back (row-major order)."""

from keras import ops


def map_to_tokens(x):
    """`(batch, height, width, channels)` → `(batch, height·width, channels)`."""
    _, height, width, channels = ops.shape(x)
    return ops.reshape(x, (-1, height * width, channels))


def tokens_to_map(tokens, like):
    """Tokens → the `(batch, height, width, ·)` grid of the map `like`."""
    _, height, width, _ = ops.shape(like)
    return ops.reshape(tokens, (-1, height, width, tokens.shape[-1]))
