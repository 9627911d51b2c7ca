"""Any timm `features_only` backbone, with its batch norms frozen (ALGORITHM 1)."""

from __future__ import annotations

from typing import cast

import timm
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn

from dino_core.config import ModelConfig, nearest
from dino_core.errors import ConfigError


class Backbone(nn.Module):
    """The feature maps of `config.backbone_out_indices`, finest first.

    Attributes:
        channels: Channel count of each map.
        reductions: Stride of each map.
    """

    def __init__(self, config: ModelConfig, pretrained: bool = False) -> None:
        super().__init__()
        if not timm.is_model(config.backbone):
            raise ConfigError(
                f"unknown backbone '{config.backbone}'",
                nearest(config.backbone, timm.list_models()) or "see timm.list_models()",
            )
        body = timm.create_model(
            config.backbone,
            pretrained=pretrained,
            features_only=True,
            out_indices=config.backbone_out_indices,
        )
        self.body: nn.Module = freeze_batch_norm_2d(body)
        info = cast("timm.models.FeatureInfo", body.feature_info)
        self.channels: list[int] = info.channels()
        self.reductions: list[int] = info.reduction()
        if config.backbone_frozen_stages:
            stages = [stage["module"] for stage in info.info]
            self._freeze_through(stages[config.backbone_frozen_stages - 1])

    def _freeze_through(self, stage: str) -> None:
        """Take the gradient from every parameter registered before or in module `stage`."""
        names = [name for name, _ in self.body.named_modules()]
        last = max(i for i, n in enumerate(names) if n == stage or n.startswith(stage + "."))
        for name in names[1 : last + 1]:
            module = self.body.get_submodule(name)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images -> maps (B, C_l, H_l, W_l)."""
        return cast(list[Tensor], self.body(images))
