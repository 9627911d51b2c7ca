"""Depthwise convolution whose weight gradient is a compiled operator on CPUs.

oneDNN's weight gradient takes up to ten times as long (5 x 5 kernels, channels last, float32). On a
GPU, maps should be contiguous, for PyTorch's own kernels: see `Backbone.memory_format`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dino_core.ops._extension import EXTENSION
from dino_core.ops._registration import check_one_device, refuse_second_derivative
from dino_core.ops.backend import choose_backend

# Those of EfficientNet-Lite. ConvNeXt's 7 x 7 kernels stay with PyTorch.
_KERNEL_SIZES = (3, 5)


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    """`functional.conv2d` with one group per channel, with a faster backward pass where compiled.

    Args:
        x: (B, C, H, W), fastest in channels-last memory.
        weight: (C, 1, K, K).
        bias: (C,) or None.
        stride: Stride along both axes.
        padding: Number of zeros on each side.

    Returns: (B, C, H_out, W_out).
    """
    # The compiled operator has a float32 CPU kernel only.
    suits = (
        x.device.type == "cpu"
        and choose_backend(x) == "compiled"
        and x.dtype == weight.dtype == torch.float32
        and weight.shape[-1] == weight.shape[-2]
        and weight.shape[-1] in _KERNEL_SIZES
        and padding < weight.shape[-1]
    )
    # The forward pass is PyTorch's in both cases; only a gradient of the weight is worth the
    # detour.
    if suits and weight.requires_grad and torch.is_grad_enabled():
        result: Tensor = _DepthwiseConv2d.apply(x, weight, bias, stride, padding)
        return result
    return functional.conv2d(x, weight, bias, stride, padding, groups=x.shape[1])


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, bias, stride, padding, groups=x.shape[1])

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        stride, padding = ctx.stride, ctx.padding
        # The kernel runs along the channels, which must be next to each other in memory.
        grad = grad.contiguous(memory_format=torch.channels_last)
        # The compiled operator has no derivative, so a gradient that is to be differentiated again
        # is PyTorch's own.
        compiled = needs_weight and not torch.is_grad_enabled()
        wanted = [needs_x, needs_weight and not compiled, False]
        grad_x = grad_weight = None
        if any(wanted):
            grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
                grad,
                x,
                weight,
                None,  # the bias has no influence on these gradients
                [stride, stride],
                [padding, padding],
                [1, 1],  # dilation
                False,
                [0, 0],  # output padding, which only transposed convolutions have
                x.shape[1],
                wanted,
            )
        if compiled:
            grad_weight = torch.ops.dino.depthwise_weight_grad(
                x.contiguous(memory_format=torch.channels_last),
                grad,
                weight.shape[-1],
                stride,
                padding,
                padding,
            )
        grad_bias = grad.sum((0, 2, 3)) if needs_bias else None
        return grad_x, grad_weight, grad_bias, None, None


def is_depthwise(module: nn.Module) -> bool:
    """Whether a module is a convolution with one group per channel, of more than one channel."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def suited_to_depthwise(x: Tensor) -> Tensor:
    """`x` (B, C, H, W) in the memory layout that is fast for depthwise convolutions."""
    return x.contiguous() if x.device.type == "cuda" else x


def _fake_weight_grad(
    x: Tensor, grad: Tensor, kernel_size: int, stride: int, padding_top: int, padding_left: int
) -> Tensor:
    """Shape and dtype of the weight's gradient, for torch.compile."""
    check_one_device("depthwise_weight_grad", input=x, grad_output=grad)
    return x.new_empty(x.shape[1], 1, kernel_size, kernel_size)


if EXTENSION.devices:
    torch.library.register_fake("dino::depthwise_weight_grad", _fake_weight_grad)
    refuse_second_derivative("depthwise_weight_grad", "depthwise_conv2d")
