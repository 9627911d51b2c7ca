"""ResNet-50 and -101 as feature maps, with timm's parameter names and frozen batch norms.

timm has these networks too and gives the same outputs (tests). They are implemented here because
importing timm doubles the time to a first prediction. Architecture: ResNet (arXiv 1512.03385) with
the stride in the 3x3 convolution, as in torchvision and the official DINO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn

from dino_core.models.backbones.body import WHOLE
from dino_core.models.backbones.frozen_norm import FrozenBatchNorm

_EXPANSION: Final = 4
RESNET_BLOCKS: Final = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
"""Number of bottlenecks of each stage, by timm's names."""


def resnet(name: str, out_indices: Sequence[int], drop_path: float) -> ResNet:
    """The ResNet of that name in `RESNET_BLOCKS`; it has no stochastic depth to set."""
    return ResNet(RESNET_BLOCKS[name], out_indices)


class ResNet(nn.Module):
    """The maps `out_indices` of strides 2, 4, 8, 16, 32; a `Body`."""

    # The map of stride 2 is that of the stem. Published models use the last three or four.
    channels = (64, 256, 512, 1024, 2048)
    reductions = (2, 4, 8, 16, 32)
    stage_ends = ("act1", "layer1", "layer2", "layer3", "layer4")
    output_norms = ()
    recomputable_blocks = ()
    parts_to_compile = WHOLE
    gives_channels_last = False

    def __init__(self, blocks: Sequence[int], out_indices: Sequence[int]) -> None:
        """`blocks` counts each stage's bottlenecks. Stages beyond the last map are left out."""
        super().__init__()
        self.out_indices = tuple(out_indices)
        self.conv1 = _conv(3, 64, 7, 2)
        self.bn1 = FrozenBatchNorm(64)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for number in range(1, max(out_indices) + 1):
            stage = nn.Sequential()
            width = 64 * 2 ** (number - 1)
            for index in range(blocks[number - 1]):
                # The maximum pooling before the first stage has halved the map already.
                stride = 2 if index == 0 and number > 1 else 1
                stage.append(_Bottleneck(channels, width, stride))
                channels = width * _EXPANSION
            self.add_module(f"layer{number}", stage)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps (B, C_l, ceil(H / stride), ceil(W / stride)), finest first."""
        x = self.act1(self.bn1(self.conv1(images)))
        maps = [x] if 0 in self.out_indices else []
        x = self.maxpool(x)
        for number in range(1, max(self.out_indices) + 1):
            x = self.get_submodule(f"layer{number}")(x)
            if number in self.out_indices:
                maps.append(x)
        return maps


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, added to the input or to its projection."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * _EXPANSION
        self.conv1 = _conv(channels, width)
        self.bn1 = FrozenBatchNorm(width, act=nn.ReLU(inplace=True))
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = FrozenBatchNorm(width, act=nn.ReLU(inplace=True))
        self.conv3 = _conv(width, out)
        self.bn3 = FrozenBatchNorm(out)
        self.act3 = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(_conv(channels, out, 1, stride), FrozenBatchNorm(out))
            if stride > 1 or channels != out
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C_out, ceil(H / stride), ceil(W / stride))."""
        y = self.bn1(self.conv1(x))
        y = self.bn2(self.conv2(y))
        y = self.bn3(self.conv3(y))
        return self.act3(y + self.downsample(x))  # type: ignore[no-any-return]


def _conv(channels: int, out: int, kernel: int = 1, stride: int = 1) -> nn.Conv2d:
    # No bias, since a norm with a shift of its own follows each convolution.
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
