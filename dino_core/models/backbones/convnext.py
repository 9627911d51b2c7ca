"""ConvNeXt (arXiv 2201.03545) as feature maps, each with a norm, as the official DINO uses it.

Parameters have timm's names. timm has these networks too and gives the same maps without the norms
(tests). They are implemented here because importing timm doubles the time to a first prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor, nn

from dino_core.models.backbones.body import WHOLE, names_of
from dino_core.models.backbones.stochastic_depth import StochasticDepth, rates
from dino_core.models.feed_forward import GeluMlp
from dino_core.models.recompute import recomputed
from dino_core.ops.depthwise import suited_to_depthwise

# The values of the official ConvNeXt: eps of its norms, standard deviation of its weights, and a
# layer scale so small that each block is nearly the identity at first.
_EPS: Final = 1e-6
_PATCH: Final = 4
_INIT_STD: Final = 0.02
_LAYER_SCALE: Final = 1e-6


@dataclass(frozen=True)
class ConvNextSize:
    """What distinguishes one ConvNeXt from another.

    Attributes:
        width: Channels of the first stage; each later stage has twice as many.
        depths: Number of blocks of each stage.
    """

    width: int
    depths: tuple[int, ...]


CONVNEXT_SIZES: Final = {
    "convnext_tiny": ConvNextSize(96, (3, 3, 9, 3)),
    "convnext_small": ConvNextSize(96, (3, 3, 27, 3)),
    "convnext_base": ConvNextSize(128, (3, 3, 27, 3)),
    "convnext_large": ConvNextSize(192, (3, 3, 27, 3)),
    "convnext_xlarge": ConvNextSize(256, (3, 3, 27, 3)),
}
"""By timm's names."""


def convnext(name: str, out_indices: Sequence[int], drop_path: float) -> ConvNext:
    """The ConvNeXt of that name in `CONVNEXT_SIZES`."""
    return ConvNext(CONVNEXT_SIZES[name], out_indices, drop_path)


class ConvNext(nn.Module):
    """The maps `out_indices` of strides 4, 8, 16, 32, each with a norm of its own; a `Body`."""

    parts_to_compile = WHOLE
    gives_channels_last = False

    def __init__(
        self, size: ConvNextSize, out_indices: Sequence[int], drop_path: float = 0.0
    ) -> None:
        """Stages beyond the last map are left out.

        Args:
            size: Width and depths of the network.
            out_indices: Which of the four maps to give.
            drop_path: Probability, in training, that the last block's branch is left out.
        """
        super().__init__()
        count = len(size.depths)
        self.channels = tuple(size.width * 2**i for i in range(count))
        self.reductions = tuple(_PATCH * 2**i for i in range(count))
        self.stage_ends = tuple(f"stages.{i}" for i in range(count))
        self.out_indices = tuple(out_indices)
        self.output_norms = tuple(f"norm{i}" for i in self.out_indices)
        self.stem = nn.Sequential(
            nn.Conv2d(3, size.width, _PATCH, _PATCH), _ChannelNorm(size.width, _EPS)
        )
        self.stages = nn.Sequential()
        last = max(self.out_indices)
        for index, stage_rates in enumerate(rates(drop_path, size.depths)[: last + 1]):
            before = self.channels[index - 1] if index else None
            # Only stages that a map needs exist, so the rest costs no memory and is not looked for
            # in files.
            self.stages.append(_Stage(before, self.channels[index], stage_rates))
        for index, name in zip(self.out_indices, self.output_norms, strict=True):
            self.add_module(name, _ChannelNorm(self.channels[index], _EPS))
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        self.recomputable_blocks = names_of(self, ConvNextBlock)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps (B, C_l, H / stride, W / stride), rounded down, finest first."""
        x = self.stem(images)
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.out_indices:
                maps.append(self.get_submodule(f"norm{index}")(x))
        return maps


class _Stage(nn.Module):
    """Halves the resolution, except in the first stage, and applies blocks."""

    def __init__(self, before: int | None, width: int, drop_rates: Sequence[float]) -> None:
        """`before` is the channel count of the stage before, or None in the first stage."""
        super().__init__()
        self.downsample = (
            nn.Identity()
            if before is None
            else nn.Sequential(_ChannelNorm(before, _EPS), nn.Conv2d(before, width, 2, 2))
        )
        self.blocks = nn.Sequential(*(ConvNextBlock(width, rate) for rate in drop_rates))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_before, H, W) -> (B, C, H / 2, W / 2), rounded down; as large in the first."""
        return cast(Tensor, self.blocks(self.downsample(x)))


class ConvNextBlock(nn.Module):
    """A depthwise 7x7 convolution and an MLP with a learned scale, added to the input.

    Attributes:
        gradient_checkpointing: Recompute activations in the backward pass instead of keeping them.
    """

    def __init__(self, width: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, _EPS)
        self.mlp = GeluMlp(width)
        self.gamma = nn.Parameter(torch.full((width,), _LAYER_SCALE))
        self.drop_path = StochasticDepth(drop_path)
        self.gradient_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        branch = recomputed(self._transform, x, enabled=self.gradient_checkpointing)
        # The draw of the stochastic depth stays outside of what is recomputed, so that the backward
        # pass sees the same branches as the forward pass.
        return cast(Tensor, x + self.drop_path(branch))

    def _transform(self, x: Tensor) -> Tensor:
        # Norm and MLP work on the last axis: (B, C, H, W) -> (B, H, W, C) and back.
        y = self.norm(self.conv_dw(suited_to_depthwise(x)).permute(0, 2, 3, 1))
        return cast(Tensor, self.mlp(y) * self.gamma).permute(0, 3, 1, 2)


class _ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of each pixel of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        normed: Tensor = super().forward(x.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)
