"""The backbone: a body of this package or any timm `features_only` network (ALGORITHM 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from dino_core.config import ModelConfig
from dino_core.errors import ConfigError
from dino_core.models.backbones.convnext import CONVNEXT_SIZES, ConvNext, ConvNextBlock
from dino_core.models.backbones.efficientnet_lite import EfficientNetLite0
from dino_core.models.backbones.frozen_norm import fold_batch_norms
from dino_core.models.backbones.resnet import RESNET_BLOCKS, ResNet
from dino_core.models.backbones.swin import SWIN_SIZES, Swin, SwinBlock
from dino_core.ops.depthwise import is_depthwise

OWN_BACKBONES = ("tf_efficientnet_lite0", *RESNET_BLOCKS, *SWIN_SIZES, *CONVNEXT_SIZES)
"""Those that need no timm, by its names."""


class _Body(Protocol):
    channels: Sequence[int]
    reductions: Sequence[int]
    stage_ends: Sequence[str]


class Backbone(nn.Module):
    """The feature maps of `config.backbone_out_indices`, finest first.

    Attributes:
        channels: Channel count of each map.
        reductions: Stride of each map.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        indices = config.backbone_out_indices
        try:
            self.body = _body(config)
            maps = cast(_Body, self.body)
            self.channels = [maps.channels[i] for i in indices]
        except IndexError:
            raise ConfigError(
                f"backbone_out_indices is {list(indices)}: '{config.backbone}' has no such maps",
                "they are counted from 0, the finest",
            ) from None
        self.reductions = [maps.reductions[i] for i in indices]
        frozen = config.backbone_frozen_stages
        self._frozen_through = maps.stage_ends[frozen - 1] if frozen else None
        self._used_through = maps.stage_ends[max(indices)]
        self._has_depthwise = any(map(is_depthwise, self.body.modules()))
        self.freeze_stages()

    def freeze_stages(self) -> None:
        """Take the gradient from the leading frozen stages, and from what follows the last map.

        The maps' own norms keep it, as in the official Swin.
        """
        norms: Sequence[str] = getattr(self.body, "output_norms", ())
        names = [name for name, _ in self.body.named_modules()]
        first = 0 if self._frozen_through is None else _last_of(self._frozen_through, names)
        last = _last_of(self._used_through, names)
        for name in {*names[1 : first + 1], *names[last + 1 :]} - {*norms}:
            for parameter in self.body.get_submodule(name).parameters(recurse=False):
                parameter.requires_grad_(False)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute the blocks of Swin and ConvNeXt in the backward; others keep activations."""
        for block in self.body.modules():
            if isinstance(block, (SwinBlock, ConvNextBlock)):
                block.gradient_checkpointing = enabled

    def parts_to_compile(self) -> list[nn.Module]:
        """The body; of Swin its blocks, one by one.

        The sizes of Swin's maps, rounded up at each stage, are too much for the compiler's algebra
        of unknown sizes: of a tiny one it had not traced the whole in four minutes.
        """
        if not isinstance(self.body, Swin):
            return [self.body]
        return [block for block in self.body.modules() if isinstance(block, SwinBlock)]

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """How images and weights shall lie in memory: channels last is fastest.

        Not for depthwise convolutions on a GPU: of channels last cuDNN takes 0.2 to 1 s to find a
        kernel, anew for each layer and size of images (benchmarks/NOTES.md).
        """
        slow = self._has_depthwise and device.type == "cuda"
        return torch.contiguous_format if slow else torch.channels_last

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images -> maps (B, C_l, H_l, W_l)."""
        images = images.contiguous(memory_format=self.memory_format(images.device))
        maps: list[Tensor] = self.body(images)
        if getattr(self.body, "gives_channels_last", False):  # (B, H_l, W_l, C_l)
            return [map_.permute(0, 3, 1, 2) for map_ in maps]
        return maps

    def fold_batch_norm(self, keep: bool = False) -> None:
        """Apply each frozen batch norm inside the convolution before it.

        Args:
            keep: Without gradients, fold again only where a weight has changed.
        """
        fold_batch_norms(self.body, keep)


def _body(config: ModelConfig) -> nn.Module:
    """The network of that name; timm is imported only where this package has not got it."""
    name, out_indices = config.backbone, config.backbone_out_indices
    if name == "tf_efficientnet_lite0":
        return EfficientNetLite0(out_indices)
    if name in RESNET_BLOCKS:
        return ResNet(RESNET_BLOCKS[name], out_indices)
    if name in SWIN_SIZES:
        return Swin(SWIN_SIZES[name], out_indices, config.backbone_drop_path)
    if name in CONVNEXT_SIZES:
        return ConvNext(CONVNEXT_SIZES[name], out_indices, config.backbone_drop_path)
    from dino_core.models.backbones.timm_body import timm_body

    return timm_body(name, out_indices, config.backbone_drop_path)


def _last_of(stage: str, names: list[str]) -> int:
    """Where module `stage` with all it holds ends in registration order."""
    return max(i for i, n in enumerate(names) if n == stage or n.startswith(stage + "."))
