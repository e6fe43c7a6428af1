"""PyTorch's own kernels where `keras.ops` takes several, or copies.

Maps are channels last: seen with the channels first they are what PyTorch calls the channels-last memory format, and
nothing is moved. On one core of an AVX-512 CPU, maps of 8 × 56 × 56 × 192, in milliseconds:

| | here | `keras.ops` |
|---|---|---|
| linear layer 192 → 192 with bias | 15.9 | 17.2 |
| depthwise 3×3 with bias | 5.5 | 8.3 |
| batch normalisation at inference | 3.6 | 7.2 |
| 3×3 maximum with a border | 4.8 | 8.5 |

of 8 × 56 × 56 × 48:

| | here | `keras.ops` |
|---|---|---|
| scale and shift by channel | 0.4 | 3.8 |

and of attention with heads of 32 channels:

| | here | `keras.ops`, which copies | in steps |
|---|---|---|---|
| 8 × 3136 queries, 64 keys, 2 heads | 8.0 | 10.1 | 13.7 |
| 8 × 260 queries and keys, 10 heads | 10.7 | 12.2 | 20.7 |
| the same with gradients | 34.5 | 34.7 | 51.4 |
"""

from keras_dualstream.ops.compiler import pytorch_runs_as_called
from keras_dualstream.ops.compiler import pytorch_runs_inference

# Rows from which a linear layer is a convolution of one tap at inference on a CPU.
ROWS_AS_MAP = 2000


def pytorch_linear(x, kernel, bias):
    """`x · kernel + bias` over the last axis.

    At inference many rows are a map for oneDNN's convolution of one tap, as PyTorch's linear layer has MKL's product.
    On two cores of an AVX-512 CPU, and of the same CPU held to AVX2, in milliseconds:

    | rows, kernel | product | convolution | AVX2: product | convolution |
    |---|---|---|---|---|
    | 25,088, 512 × 64 | 13.3 | 8.6 | 13.4 | 9.5 |
    | 25,088, 64 × 256 | 5.9 | 4.7 | 5.8 | 5.7 |
    | 6,272, 1024 × 128 | 10.5 | 7.9 | 10.8 | 8.4 |
    | 6,272, 128 × 512 | 4.5 | 4.3 | 4.7 | 5.2 |
    | 1,568, 896 × 224 | 3.2 | 3.1 | 3.3 | 3.3 |
    | 392, 512 × 2048 | 4.6 | 5.9 | 4.6 | 6.0 |

    Args:
        x: tensor `(..., channels)`.
        kernel: tensor `(channels, units)`.
        bias: tensor `(units,)` or `None`.

    Returns:
        Tensor `(..., units)`.
    """
    import torch

    if pytorch_runs_inference() and _fits_as_map(x, kernel):
        rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
        y = torch.nn.functional.conv2d(rows, kernel.t()[:, :, None, None], bias)
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], kernel.shape[-1])
    return torch.nn.functional.linear(x, kernel.t(), bias)


def _fits_as_map(x, kernel):
    import torch

    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return on_cpu and kernel.numel() > 0 and x.numel() >= ROWS_AS_MAP * x.shape[-1]


def pytorch_conv2d(x, kernel, bias, strides, zeros, dilation_rate=(1, 1), groups=1, data_format="channels_last"):
    """Convolution that adds zeros and bias itself.

    `keras.ops` knows no zeros but those of `"same"`, and a map padded before is
    copied: that takes two to seven times as long as a depthwise convolution.
    It also copies every map with the channels first, and back again.

    Args:
        x: tensor `(batch, height, width, channels)`, or
            `(batch, channels, height, width)` with `data_format="channels_first"`.
        kernel: tensor `(kernel_height, kernel_width, channels / groups, filters)`.
        bias: tensor `(filters,)` or `None`.
        strides: pair of int.
        zeros: `((top, bottom), (left, right))`, the zeros around `x`.
        dilation_rate: pair of int. Defaults to `(1, 1)`.
        groups: int. Defaults to `1`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `"channels_last"`.

    Returns:
        Tensor with `filters` channels.
    """
    import torch

    if data_format == "channels_last":
        x = x.permute(0, 3, 1, 2)
    kernel = kernel.permute(3, 2, 0, 1)
    (top, bottom), (left, right) = zeros
    one_tap = tuple(kernel.shape[2:]) == (1, 1) and max(strides) > 1
    if top != bottom or left != right or (one_tap and (top or left)):
        x, top, left = torch.nn.functional.pad(x, (left, right, top, bottom)), 0, 0
    if one_tap:
        # PyTorch's kernel for every s-th position writes beyond its buffer in bfloat16 (2.13, maps of 1 × 16 × 16 × 8,
        # channels last, on a CPU with AVX512-BF16), which ends the process later.
        x, strides = x[:, :, :: strides[0], :: strides[1]], (1, 1)
    y = torch.nn.functional.conv2d(x, kernel, bias, strides, (top, left), dilation_rate, groups)
    return y.permute(0, 2, 3, 1) if data_format == "channels_last" else y


def pytorch_batch_normalization(x, gamma, beta, epsilon, mean=None, variance=None):
    """Batch normalisation over the last axis, by given statistics or by those of the batch.

    Args:
        x: tensor `(..., channels)`.
        gamma: tensor `(channels,)` or `None`.
        beta: tensor `(channels,)` or `None`.
        epsilon: float.
        mean: tensor `(channels,)`, or `None` for the batch's. Defaults to `None`.
        variance: tensor `(channels,)`, or `None` for the batch's. Defaults to `None`.

    Returns:
        The normalised tensor, and the mean and variance that normalised it.
    """
    import torch

    rows = x.reshape(-1, *x.shape[-3:]) if x.dim() >= 4 else x.reshape(x.shape[0], -1, 1, x.shape[-1])
    rows = rows.permute(0, 3, 1, 2)
    of_batch = mean is None
    y, batch_mean, inverse_deviation = torch.native_batch_norm(
        rows, gamma, beta, mean, variance, of_batch, 0.0, epsilon
    )
    if of_batch:
        mean, variance = batch_mean, inverse_deviation**-2 - epsilon
    return y.permute(0, 2, 3, 1).reshape(x.shape), mean, variance


def pytorch_layer_normalization(x, gamma, beta, epsilon):
    """Normalisation of each position over its channels.

    Args:
        x: tensor `(..., channels)`.
        gamma: tensor `(channels,)` or `None`.
        beta: tensor `(channels,)` or `None`.
        epsilon: float.

    Returns:
        Tensor of the shape of `x`.
    """
    import torch

    return torch.nn.functional.layer_norm(x, x.shape[-1:], gamma, beta, epsilon)


def pytorch_standardization(x, mean, deviation):
    """`(x - mean) / deviation`, row by row where operations run as they are called.

    Channel by channel PyTorch goes through a map of three of them one by one: 1.05 ms instead of 0.18 for
    8 × 224 × 224 × 3 alone on two cores; in new memory among DFvT-T's other maps 2.0 to 2.8 instead of 0.5 to 1.2.

    Args:
        x: tensor `(batch, height, width, channels)`.
        mean: tensor of one number a channel.
        deviation: tensor of one number a channel.

    Returns:
        Tensor of the shape of `x`.
    """
    if not pytorch_runs_as_called():
        return (x - mean) / deviation
    width, channels = x.shape[-2:]
    mean, deviation = (each.reshape(-1).repeat(width) for each in (mean, deviation))
    return (x.reshape(*x.shape[:-2], width * channels) - mean).div_(deviation).reshape(x.shape)


def pytorch_max_pool2d(x, size, strides, border):
    """Largest value of each window of a map, whose border counts as nothing.

    Args:
        x: tensor `(batch, height, width, channels)`.
        size: int. Rows and columns of a window.
        strides: int.
        border: int. Positions that the windows reach beyond the map.

    Returns:
        Tensor `(batch, new_height, new_width, channels)`.
    """
    import torch

    y = torch.nn.functional.max_pool2d(x.permute(0, 3, 1, 2), size, strides, border)
    return y.permute(0, 2, 3, 1)


def pytorch_adaptive_average_pool2d(x, height, width):
    """`adaptive_average_pool` of PyTorch tensors.

    Args:
        x: tensor `(batch, height, width, channels)`.
        height: int. Rows of the result.
        width: int. Columns of the result.

    Returns:
        Tensor `(batch, height, width, channels)`.
    """
    import torch

    y = torch.nn.functional.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), (height, width))
    return y.permute(0, 2, 3, 1)


def pytorch_group_normalization(x, gamma, beta, epsilon):
    """Normalisation of each sample over all its positions and channels.

    Args:
        x: tensor `(batch, height, width, channels)`.
        gamma: tensor `(channels,)`.
        beta: tensor `(channels,)`.
        epsilon: float.

    Returns:
        Tensor of the shape of `x`.
    """
    import torch

    # The gradient of `torch.nn.functional.group_norm` ends the process on some channels-last maps (PyTorch 2.13). With
    # weights for each position the kernel of a layer keeps the map and these, of one sample's size, for the backward
    # pass; scaled after it, the map twice (8 × 56 × 56 × 48, two cores: 0.6 ms instead of 1.8, with gradients 2.0
    # instead of 6.6).
    gamma, beta = (weights.expand(x.shape[1:]).contiguous() for weights in (gamma, beta))
    return torch.nn.functional.layer_norm(x, x.shape[1:], gamma, beta, epsilon)


def pytorch_scale_and_shift(x, gamma, beta, out=None):
    """`x · gamma + beta`.

    Args:
        x: tensor `(..., channels)`.
        gamma: tensor `(channels,)`.
        beta: tensor `(channels,)`.
        out: tensor of the shape of `x` to write the result into, `x` itself among them. Defaults to `None`.

    Returns:
        Tensor of the shape of `x`.
    """
    import torch

    return torch.addcmul(beta, x, gamma, out=out)


def pytorch_attention(query, key, value, bias):
    """`softmax(q kᵀ / √d + bias) v`.

    Args:
        query: tensor `(batch, queries, heads, channels)`.
        key: tensor `(batch, keys, heads, channels)`.
        value: tensor `(batch, keys, heads, channels)`.
        bias: tensor that broadcasts to `(batch, heads, queries, keys)`, or `None`.

    Returns:
        Tensor `(batch, queries, heads, channels)`.
    """
    import torch

    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, bias).transpose(1, 2)


def pytorch_gelu(x):
    """`x · Φ(x)`, written over `x` unless that takes part in a gradient.

    Args:
        x: tensor.

    Returns:
        Tensor of the shape of `x`.
    """
    import torch

    return torch.nn.functional.gelu(x) if x.requires_grad else torch.ops.aten.gelu_(x)


def pytorch_silu(x):
    """`x / (1 + e⁻ˣ)`, written over `x` unless that takes part in a gradient.

    Args:
        x: tensor.

    Returns:
        Tensor of the shape of `x`.
    """
    import torch

    return torch.nn.functional.silu(x, inplace=not x.requires_grad)
