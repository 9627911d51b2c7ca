"""The backbone: a body of this package or any timm `features_only` network (ALGORITHM 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from torch import Tensor, nn

from dino_core.config import ModelConfig
from dino_core.models.efficientnet_lite import EfficientNetLite0
from dino_core.models.frozen_norm import fold_batch_norms
from dino_core.models.resnet import RESNET_BLOCKS, ResNet


class _Body(Protocol):
    channels: Sequence[int]
    reductions: Sequence[int]
    stages: Sequence[str]


class Backbone(nn.Module):
    """The feature maps of `config.backbone_out_indices`, finest first.

    Attributes:
        channels: Channel count of each map.
        reductions: Stride of each map.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        indices = config.backbone_out_indices
        self.body = _body(config.backbone, indices)
        maps = cast(_Body, self.body)
        self.channels = [maps.channels[i] for i in indices]
        self.reductions = [maps.reductions[i] for i in indices]
        frozen = config.backbone_frozen_stages
        self._frozen_through = maps.stages[frozen - 1] if frozen else None
        self._used_through = maps.stages[max(indices)]
        self.freeze_stages()

    def freeze_stages(self) -> None:
        """Take the gradient from the leading frozen stages, and from what follows the last map."""
        names = [name for name, _ in self.body.named_modules()]
        first = 0 if self._frozen_through is None else _last_of(self._frozen_through, names)
        last = _last_of(self._used_through, names)
        for name in names[1 : first + 1] + names[last + 1 :]:
            for parameter in self.body.get_submodule(name).parameters(recurse=False):
                parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images -> maps (B, C_l, H_l, W_l)."""
        return cast(list[Tensor], self.body(images))

    def fold_batch_norm(self, keep: bool = False) -> None:
        """Apply each frozen batch norm inside the convolution before it.

        Args:
            keep: Without gradients, fold again only where a weight has changed.
        """
        fold_batch_norms(self.body, keep)


def _body(name: str, out_indices: Sequence[int]) -> nn.Module:
    """The network of that name; timm is imported only where this package has not got it."""
    if name == "tf_efficientnet_lite0":
        return EfficientNetLite0(out_indices)
    if name in RESNET_BLOCKS:
        return ResNet(RESNET_BLOCKS[name], out_indices)
    from dino_core.models.timm_body import timm_body

    return timm_body(name, out_indices)


def _last_of(stage: str, names: list[str]) -> int:
    """Where module `stage` with all it holds ends in registration order."""
    return max(i for i, n in enumerate(names) if n == stage or n.startswith(stage + "."))
