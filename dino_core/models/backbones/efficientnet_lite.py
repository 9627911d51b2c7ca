"""EfficientNet-Lite0 as feature maps, with timm's parameter names and frozen batch norms.

timm has this network too and gives the same outputs (tests). It is implemented here because
importing timm imports torchvision and torch's compiler, which doubles the time to the default
model's first prediction. Architecture: EfficientNet (arXiv 1905.11946) without
squeeze-and-excitation and with ReLU6, widths and depths of "lite0" in TensorFlow's TPU repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn

from dino_core.models.backbones.body import WHOLE
from dino_core.models.backbones.frozen_norm import FrozenBatchNorm, SameConv2d

# TensorFlow's default, with which the weights were trained; PyTorch's is 1e-5.
_EPS: Final = 1e-3
_STEM: Final = 32
_EXPANSION: Final = 6
_STAGES: Final = (  # blocks, kernel, stride, channels; the first stage does not expand
    (1, 3, 1, 16),
    (2, 3, 2, 24),
    (2, 5, 2, 40),
    (3, 3, 2, 80),
    (3, 5, 1, 112),
    (4, 5, 2, 192),
    (1, 3, 1, 320),
)
_MAPS: Final = (0, 1, 2, 4, 6)  # the last stage of each resolution


def efficientnet_lite0(
    name: str, out_indices: Sequence[int], drop_path: float
) -> EfficientNetLite0:
    """The one network of this family; its stochastic depth is left out."""
    return EfficientNetLite0(out_indices)


class EfficientNetLite0(nn.Module):
    """The maps `out_indices` of strides 2, 4, 8, 16, 32; a `Body`."""

    channels = tuple(_STAGES[i][3] for i in _MAPS)
    reductions = (2, 4, 8, 16, 32)
    stage_ends = tuple(f"blocks.{i}" for i in _MAPS)
    output_norms = ()
    recomputable_blocks = ()
    parts_to_compile = WHOLE
    gives_channels_last = False

    def __init__(self, out_indices: Sequence[int]) -> None:
        super().__init__()
        self.out_indices = tuple(out_indices)
        self.conv_stem = _conv(3, _STEM, 3, 2)
        self.bn1 = FrozenBatchNorm(_STEM, _EPS, nn.ReLU6(inplace=True))
        self.blocks = nn.Sequential()
        channels = _STEM
        for index, (count, kernel, stride, out) in enumerate(_STAGES):
            stage = nn.Sequential()
            for number in range(count):
                step = stride if number == 0 else 1
                block = _Block if index else _FirstBlock
                stage.append(block(channels, out, kernel, step))
                channels = out
            self.blocks.append(stage)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps (B, C_l, ceil(H / stride), ceil(W / stride)), finest first."""
        x = self.bn1(self.conv_stem(images))
        maps = []
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in _MAPS and _MAPS.index(index) in self.out_indices:
                maps.append(x)
        return maps


class _FirstBlock(nn.Module):
    """A depthwise and a pointwise convolution; the first stage does not expand channels."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = _conv(channels, channels, kernel, stride, channels)
        self.bn1 = FrozenBatchNorm(channels, _EPS, nn.ReLU6(inplace=True))
        self.conv_pw = _conv(channels, out)
        self.bn2 = FrozenBatchNorm(out, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C_out, H, W)."""
        x = self.bn1(self.conv_dw(x))
        return self.bn2(self.conv_pw(x))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """An inverted residual: expand, depthwise, project. The input is added where shapes agree."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = channels * _EXPANSION
        self.conv_pw = _conv(channels, wide)
        self.bn1 = FrozenBatchNorm(wide, _EPS, nn.ReLU6(inplace=True))
        self.conv_dw = _conv(wide, wide, kernel, stride, wide)
        self.bn2 = FrozenBatchNorm(wide, _EPS, nn.ReLU6(inplace=True))
        # The projection before the sum has no activation: ReLU6 would destroy information in the
        # narrow representation (MobileNetV2, arXiv 1801.04381, section 3.2).
        self.conv_pwl = _conv(wide, out)
        self.bn3 = FrozenBatchNorm(out, _EPS)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C_out, ceil(H / stride), ceil(W / stride))."""
        y = self.bn1(self.conv_pw(x))
        y = self.bn2(self.conv_dw(y))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.residual else y  # type: ignore[no-any-return]


def _conv(channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride > 1:
        conv: nn.Conv2d = SameConv2d(channels, out, kernel, stride, groups=groups, bias=False)
    else:  # where the size stays, plain padding is the same
        conv = nn.Conv2d(channels, out, kernel, 1, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return conv
