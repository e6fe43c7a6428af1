"""Scaled dot-product attention over heads."""

import functools

import keras
from keras import ops

from keras_dualstream.ops.compiler import jax_on_cpu
from keras_dualstream.ops.compiler import tensorflow_on_cpu
from keras_dualstream.ops.float64 import is_float64
from keras_dualstream.ops.half_precision import for_sums
from keras_dualstream.ops.half_precision import is_full_precision
from keras_dualstream.ops.jax_attention import jax_attention
from keras_dualstream.ops.pieces import count_pieces
from keras_dualstream.ops.pieces import traced_by_jax
from keras_dualstream.ops.pytorch_kernels import pytorch_attention
from keras_dualstream.ops.reshape import reshape

# On JAX, scores of all samples up to which they are computed at once: in pieces 1.6 million (batch 8, 4 heads, 784
# queries, 64 keys) take 3.4 ms instead of 1.8, 5.4 million (10 heads, 260 queries and keys) 12.8 instead of 17.3.
SCORES_AT_ONCE = 2**21


def multi_head_attention(query, key, value, num_heads, bias=None, dropout=None):
    """Attention of `query` tokens over `key`/`value` tokens, head by head.

    Each head computes `softmax(q kᵀ / √d + bias) v` on its `d = channels / num_heads`
    channels; the heads are laid side by side again. The softmax is computed in
    float32 whatever the dtype of the tokens, and PyTorch uses its fused kernel
    where no weight is dropped.

    Args:
        query: float tensor `(batch, queries, channels)`.
        key: float tensor `(batch, keys, channels)`.
        value: float tensor `(batch, keys, channels)`.
        num_heads: int. Number of heads; divides `channels`.
        bias: float tensor that broadcasts to `(batch, heads, queries, keys)`,
            added before the softmax. Defaults to `None`.
        dropout: function applied to the weights after the softmax, whatever
            their shape, such as a `Dropout` layer; `None` for none. Defaults to `None`.

    Returns:
        Tensor `(batch, queries, channels)`.
    """
    dtype = query.dtype
    query, key, value = (_split_heads(for_sums(tokens), num_heads) for tokens in (query, key, value))
    if keras.config.backend() == "torch" and dropout is None:
        output = pytorch_attention(query, key, value, bias)
    else:
        # Scaled before the product, whose float16 sums would otherwise overflow at √d times smaller tokens on
        # TensorFlow.
        query = query * query.shape[-1] ** -0.5
        if dropout is None and jax_on_cpu() and is_full_precision(query.dtype):
            output = _attend_on_jax(query, key, value, bias)
        elif dropout is not None or _is_faster_as_products(query) or _has_no_kernel(query):
            output = _attend(query, key, value, bias, dropout)
        else:
            fused = False if _has_fused_kernel_without_gradient(query, key) else None
            output = ops.dot_product_attention(query, key, value, bias=bias, scale=1.0, flash_attention=fused)
    output = reshape(output, (-1, ops.shape(query)[1], num_heads * value.shape[-1]))
    return output if output.dtype == dtype else ops.cast(output, dtype)


def _split_heads(tokens, num_heads):
    channels = tokens.shape[-1]
    return reshape(tokens, (-1, ops.shape(tokens)[1], num_heads, channels // num_heads))


def _attend_on_jax(query, key, value, bias):
    bias = bias if bias is None else ops.convert_to_tensor(bias, dtype=query.dtype)
    shared = bias is None or tuple(bias.shape[:-3]) in ((), (1,))
    pieces = count_pieces((*query.shape[:3], key.shape[1]), SCORES_AT_ONCE) if shared and traced_by_jax(query) else 1
    return jax_attention(query, key, value, bias, pieces)


def _has_fused_kernel_without_gradient(query, key):
    """Whether cuDNN's fused kernel, which Keras takes on JAX in half precision, may have no gradient.

    It has none for odd numbers of tokens with a bias, and JAX (0.10 and 0.11) takes its stand-in for no bias for one:
    Keras then logs a traceback for every layer and takes the products after all.
    """
    counts = query.shape[1], key.shape[1]
    return keras.config.backend() == "jax" and any(isinstance(count, int) and count % 2 for count in counts)


def _has_no_kernel(x):
    """Whether `keras.ops.dot_product_attention` cannot compute in the dtype of `x`.

    It turns float64 into float32 on JAX and holds a float32 constant on
    TensorFlow; JAX has no float16 product with float32 sums on CPU and raises.
    """
    return is_float64(x) or (keras.config.backend() == "jax" and x.dtype == "float16")


def _attend(query, key, value, bias, dropout):
    """Attention of scaled queries, `dropout(softmax(q kᵀ + bias)) v`, with a softmax in at least float32."""
    score, weigh = _products(query)
    scores = score(query, key)
    scores = scores if is_float64(scores) else ops.cast(scores, "float32")
    scores = scores if bias is None else scores + ops.cast(bias, scores.dtype)
    # Keras warns of a softmax over one key, which a grid of one position has.
    weights = ops.exp(scores - scores) if scores.shape[-1] == 1 else ops.softmax(scores, axis=-1)
    weights = weights if dropout is None else _drop(dropout, weights)
    return weigh(ops.cast(weights, value.dtype), value)


def _drop(dropout, weights):
    """The weights dropped, by JAX on a CPU in one row.

    XLA writes the short axes of a draw out, such as that over 9 or 49 keys. In a row, the code of DS-Net-S' training
    step is 17.5 instead of 33.7 MB, and takes XLA 45 instead of 66 s.
    """
    if not jax_on_cpu():
        return dropout(weights)
    return reshape(dropout(reshape(weights, (-1,))), (-1, *ops.shape(weights)[1:]))


def _products(like):
    """Functions for `q kᵀ` and for `weights · v`."""
    if _is_faster_as_products(like):
        return (
            lambda query, key: ops.matmul(ops.transpose(query, (0, 2, 1, 3)), ops.transpose(key, (0, 2, 3, 1))),
            lambda weights, value: ops.transpose(ops.matmul(weights, ops.transpose(value, (0, 2, 1, 3))), (0, 2, 1, 3)),
        )
    return functools.partial(ops.einsum, "bqhd,bkhd->bhqk"), functools.partial(ops.einsum, "bhqk,bkhd->bqhd")


def _is_faster_as_products(x):
    """Whether attention goes as matrix products behind transpositions, as in float32 on TensorFlow's CPU.

    With gradients they take 65 ms instead of the einsum's 99 for 8 × 10 heads of 32, 260 queries and keys, 32 instead
    of 36 for 2 heads, 3136 queries and 64 keys, 12 instead of 14 for 128 × 3 heads of 16, 49 queries and keys (two
    cores); forward about the same.
    """
    return tensorflow_on_cpu() and keras.backend.standardize_dtype(x.dtype) == "float32"
