"""Scaled dot-product attention over heads."""

from keras import ops


def multi_head_attention(query, key, value, num_heads):
    """Attention of `query` tokens over `key`/`value` tokens, head by head.

    Each head computes `softmax(q kᵀ / √d) v` on its `d = channels / num_heads`
    channels; the heads are laid side by side again. The softmax is computed in
    float32 whatever the dtype of the tokens, and PyTorch uses its fused kernel.

    Args:
        query: float tensor `(batch, queries, channels)`.
        key: float tensor `(batch, keys, channels)`.
        value: float tensor `(batch, keys, channels)`.
        num_heads: int. Number of heads; divides `channels`.

    Returns:
        Tensor `(batch, queries, channels)`.
    """
    output = ops.dot_product_attention(
        _split_heads(query, num_heads), _split_heads(key, num_heads), _split_heads(value, num_heads)
    )
    return ops.reshape(output, (-1, ops.shape(query)[1], query.shape[-1]))


def _split_heads(tokens, num_heads):
    channels = tokens.shape[-1]
    return ops.reshape(tokens, (-1, ops.shape(tokens)[1], num_heads, channels // num_heads))
