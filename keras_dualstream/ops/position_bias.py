"""Attention in pieces that keep memory linear, with a learned bias per head, query and key or without."""

import functools

import keras
from keras import ops

from keras_dualstream.ops.attention import multi_head_attention
from keras_dualstream.ops.resample import bicubic_matrix
from keras_dualstream.ops.resample import bicubic_taps

# Scores per sample above which the queries are attended to piece by piece: 64 MiB in float32. An 800x1280 image has
# 64 million scores in the first stage of TransXNet; a 384x384 image stays in one piece.
SCORES_PER_PIECE = 2**24


def position_biased_attention(query, key, value, num_heads, table=None, remat=False, dropout=None):
    """Multi-head attention plus a table of biases, resized to the numbers of queries and keys.

    A table made for other numbers is resized as an image of queries by keys
    (bicubic, as `resize_bicubic` does). Neither the resized table nor the
    scores ever exist whole when they are large: the queries are independent of
    each other, so they go through in pieces.

    Args:
        query: float tensor `(batch, queries, channels)`.
        key: float tensor `(batch, keys, channels)`.
        value: float tensor `(batch, keys, channels)`.
        num_heads: int. Divides `channels`.
        table: float tensor `(1, num_heads, table_queries, table_keys)` of
            static size, or `None` for no bias.
        remat: bool. Whether the backward pass computes the pieces anew instead
            of keeping their scores; not with `dropout`, which would drop others
            the second time. Defaults to `False`.
        dropout: as `multi_head_attention` takes it. Defaults to `None`.

    Returns:
        Tensor `(batch, queries, channels)`.
    """
    queries, keys = ops.shape(query)[1], ops.shape(key)[1]
    pieces = _pieces(queries, keys, num_heads)
    known = isinstance(queries, int) and isinstance(keys, int)
    if table is not None and not (known and (queries, keys) == tuple(table.shape[2:])):
        # The few keys at once by a matrix; the many queries by their four taps, piece by piece.
        table = ops.einsum("ahqk,nk->ahqn", table, bicubic_matrix(table.shape[3], keys, table.dtype))
        dtype = keras.backend.standardize_dtype(table.dtype)
        positions, weights = bicubic_taps(table.shape[2], queries, dtype)
        biases = [functools.partial(_rows, positions=positions[piece], weights=weights[piece]) for piece in pieces]
    else:
        biases = [functools.partial(_slice, piece=piece) for piece in pieces]
    outputs = []
    for piece, bias in zip(pieces, biases, strict=True):
        attend = functools.partial(_attend_piece, num_heads=num_heads, bias=bias, dropout=dropout)
        attend = keras.remat(attend) if remat and dropout is None and len(pieces) > 1 else attend
        inputs = [query[:, piece], key, value]
        outputs.append(attend(*inputs) if table is None else attend(*inputs, table))
    return outputs[0] if len(pieces) == 1 else ops.concatenate(outputs, axis=1)


def _attend_piece(query, key, value, table=None, *, num_heads, bias, dropout):
    return multi_head_attention(query, key, value, num_heads, None if table is None else bias(table), dropout)


def _pieces(queries, keys, num_heads):
    """Slices of the queries with at most `SCORES_PER_PIECE` scores; one slice where the sizes are unknown."""
    if not (isinstance(queries, int) and isinstance(keys, int)):
        return [slice(None)]
    length = max(SCORES_PER_PIECE // (keys * num_heads), 1)
    return [slice(start, min(start + length, queries)) for start in range(0, queries, length)]


def _slice(table, piece):
    return table[:, :, piece]


def _rows(table, positions, weights):
    """The table's rows resized to some of the queries, from the four rows that each reads."""
    rows = [
        ops.take(table, positions[:, tap], axis=2) * ops.convert_to_tensor(weights[:, tap, None]) for tap in range(4)
    ]
    return rows[0] + rows[1] + rows[2] + rows[3]
