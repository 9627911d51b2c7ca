"""Frozen batch norm, its folding into the convolution before it, and TensorFlow's "same" padding.

A frozen batch norm is a fixed scale and shift per channel (ALGORITHM 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dino_core.ops.depthwise import depthwise_conv2d, is_depthwise


class FrozenBatchNorm(nn.Module):
    """A batch norm whose statistics and parameters are buffers, followed by an activation.

    Attributes:
        folded: Whether the convolution before it already applies scale and shift.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, act: nn.Module | None = None) -> None:
        super().__init__()
        # Buffers, so that no optimizer or weight decay touches them, and files still hold them.
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.eps = eps
        self.act = act
        self.folded = False

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The factor of each channel and the number added to it after that, each (C,)."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.folded:
            scale, shift = self.scale_and_shift()
            # One pass over the map instead of the four of subtract, divide, multiply and add.
            x = torch.addcmul(shift[:, None, None], x, scale[:, None, None])
        return x if self.act is None else cast(Tensor, self.act(x))


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding: output size is input size / stride, rounded up.

    If the number of zeros is odd, the additional one is at the bottom and right.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C_out, ceil(H / stride), ceil(W / stride))."""
        return super().forward(pad_same(x, self))


def pad_same(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """`x` (B, C, H, W) with the zeros around it that "same" padding needs for `conv`."""
    sides = []
    for axis in (1, 0):  # width first, as functional.pad wants it
        size, stride = x.shape[2 + axis], conv.stride[axis]
        reach = (conv.kernel_size[axis] - 1) * conv.dilation[axis] + 1  # pixels under one window
        # What the last of ceil(size / stride) windows reaches beyond the input.
        total = max((-(size // -stride) - 1) * stride + reach - size, 0)
        # TensorFlow puts the odd zero last, and PyTorch's symmetric padding cannot express that.
        sides += [total // 2, total - total // 2]
    return functional.pad(x, sides)


@dataclass(frozen=True)
class _Folded:
    """The one convolution that replaces a convolution and its norm, kept between calls.

    Attributes:
        source: Address and version of the weight that was folded.
        weight: Weight of the one convolution.
        bias: Bias of the one convolution.
        padded_weight: For "same" padding with stride 2 and even sizes: `weight` with a row and
            column of zeros above and to the left. It needs the same padding on all sides, and so no
            padded copy of x. None for other convolutions.
    """

    source: tuple[int, int]
    weight: Tensor
    bias: Tensor
    padded_weight: Tensor | None


class FoldedConv2d(nn.Module):
    """A convolution followed by a frozen batch norm, computed as one convolution.

    This saves two passes over every map, and the casts that autocast puts around them. Parameters
    and buffers keep their names. Results differ in the last bits.
    """

    def __init__(self, conv: nn.Conv2d, norm: FrozenBatchNorm, keep: bool) -> None:
        """With `keep`, and without gradients, fold again only if the weight has changed."""
        super().__init__()
        self.weight = conv.weight
        self.bias = conv.bias
        # In lists, so that they are no submodules: the parameters are registered under their old
        # names above, and the buffers in the norm.
        self._conv, self._norm = [conv], [norm]
        self._keep = keep
        self._kept: _Folded | None = None
        # The norm stays in its place with its buffers, so names in files do not change, but
        # computes only its activation from now on.
        norm.folded = True

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C_out, H_out, W_out)."""
        conv = self._conv[0]
        keep = self._keep and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        # With gradients the weight changes in every step, so it is folded in every forward pass.
        # This is cheap next to the convolution, and the gradient reaches the weight through the
        # product.
        if keep and not self.weight.is_inference():  # inference tensors count no changes
            return self._convolve_kept(x)
        weight, bias = self._fold()
        if isinstance(conv, SameConv2d):
            x = pad_same(x, conv)
        # oneDNN's bf16 backward pass is slow for grouped convolutions: 440 ms instead of 15 ms in
        # fp32 for 16 maps of 672 x 19 x 23 with a 5 x 5 kernel and stride 2.
        slow_in_bf16 = conv.groups > 1 and x.device.type == "cpu" and torch.is_grad_enabled()
        if slow_in_bf16 and (x.requires_grad or weight.requires_grad):
            # In fp32, its backward pass takes half the time or less with channels last.
            with torch.autocast("cpu", enabled=False):
                x = x.to(torch.float32, memory_format=torch.channels_last)
                if _is_square_depthwise(conv):
                    return depthwise_conv2d(x, weight, bias, conv.stride[0], _padding(conv))
                return _convolve(conv, x, weight, bias)
        return _convolve(conv, x, weight, bias)

    def _fold(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution for convolution and norm."""
        scale, shift = self._norm[0].scale_and_shift()
        if self.bias is not None:
            shift = shift + self.bias * scale
        # Per output channel: (C_out, C_in, K, K) times (C_out, 1, 1, 1).
        return self.weight * scale[:, None, None, None], shift

    def _convolve_kept(self, x: Tensor) -> Tensor:
        conv = self._conv[0]
        # The address changes when the parameter is moved or replaced, the version when it is
        # written in place, e.g. by `load_state_dict`.
        source = (self.weight.data_ptr(), self.weight._version)
        if self._kept is None or self._kept.source != source:
            weight, bias = self._fold()
            self._kept = _Folded(source, weight, bias, _padded_weight(conv, weight))
        kept = self._kept
        # "Same" padding with stride 2 and an even size is asymmetric: one more zero at the bottom
        # and right. A kernel with zeros above and to the left has the same windows under symmetric
        # padding.
        if kept.padded_weight is not None and x.shape[-1] % 2 == 0 and x.shape[-2] % 2 == 0:
            padding = conv.kernel_size[0] // 2
            return functional.conv2d(
                x, kept.padded_weight, kept.bias, conv.stride, padding, groups=conv.groups
            )
        if isinstance(conv, SameConv2d):
            x = pad_same(x, conv)
        return _convolve(conv, x, kept.weight, kept.bias)


def _is_square_depthwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution is depthwise, keeps the channel count, and is square in every way."""
    square = all(
        len(set(cast("tuple[int, int]", pair))) == 1
        for pair in (conv.kernel_size, conv.stride, conv.padding)
    )
    as_many = conv.in_channels == conv.out_channels
    return is_depthwise(conv) and as_many and square and conv.dilation == (1, 1)


def _padding(conv: nn.Conv2d) -> int:
    return cast("tuple[int, int]", conv.padding)[0]


def _padded_weight(conv: nn.Conv2d, weight: Tensor) -> Tensor | None:
    """The weight for `_Folded.padded_weight`; None unless `conv` is depthwise and halves the size.

    Only for depthwise convolutions a padded copy of x costs more than multiplying by the zeros.
    """
    halving = conv.stride == (2, 2) and conv.kernel_size[0] % 2 == 1
    if not (isinstance(conv, SameConv2d) and _is_square_depthwise(conv) and halving):
        return None
    return functional.pad(weight, (1, 0, 1, 0))


def _convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def fold_batch_norms(module: nn.Module, keep: bool = False) -> None:
    """Replace each convolution that precedes a frozen batch norm by a `FoldedConv2d`, in place."""
    for parent in list(module.modules()):
        name, conv = "", None
        # Children in the order of registration: a norm belongs to the last convolution before it in
        # the same parent. Equal channel counts are a second check.
        for child_name, child in list(parent.named_children()):
            if type(child) in (nn.Conv2d, SameConv2d):  # subclasses may compute something else
                name, conv = child_name, cast(nn.Conv2d, child)
            elif isinstance(child, FrozenBatchNorm) and conv is not None:
                if conv.out_channels == child.weight.numel():
                    setattr(parent, name, FoldedConv2d(conv, child, keep))
                conv = None
