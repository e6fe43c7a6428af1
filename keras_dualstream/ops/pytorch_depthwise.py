"""Depthwise convolution by PyTorch's own operation, which adds the zeros itself."""


def pytorch_depthwise_conv2d(x, kernel, strides, zeros, dilation_rate, data_format):
    """`depthwise_conv2d` of PyTorch tensors.

    `keras.ops` knows no zeros but those of `"same"`, and a map padded before is
    copied: that takes two to seven times as long as the convolution.

    Args:
        x: tensor `(batch, height, width, channels)`, or
            `(batch, channels, height, width)` with `data_format="channels_first"`.
        kernel: tensor `(kernel_height, kernel_width, channels, multiplier)`.
        strides: pair of int.
        zeros: `((top, bottom), (left, right))`, the zeros around `x`.
        dilation_rate: pair of int.
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        Tensor with `channels · multiplier` channels.
    """
    import torch

    if data_format == "channels_last":
        x = x.permute(0, 3, 1, 2)
    height, width, channels, multiplier = kernel.shape
    kernel = kernel.reshape(height, width, 1, channels * multiplier).permute(3, 2, 0, 1)
    (top, bottom), (left, right) = zeros
    if top != bottom or left != right:
        x, top, left = torch.nn.functional.pad(x, (left, right, top, bottom)), 0, 0
    y = torch.nn.functional.conv2d(x, kernel, None, strides, (top, left), dilation_rate, channels)
    return y.permute(0, 2, 3, 1) if data_format == "channels_last" else y
