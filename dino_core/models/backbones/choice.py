"""Another backbone for a model: which of its maps to take, and whether it can be one at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch

from dino_core.config import ModelConfig
from dino_core.errors import ConfigError
from dino_core.models.backbones.backbone import OWN_BACKBONES, Backbone

_ANY_HW = (201, 333)  # a size that suits no stride


def with_backbone(
    config: ModelConfig, name: str, input_hw: tuple[int, int] | None = None
) -> ModelConfig:
    """The same model on another backbone, whose maps have the strides that its own has.

    Nothing of the new one is frozen and its stochastic depth is off: no trained weights are known.

    Args:
        config: The model.
        name: One of this package's networks or any of timm's.
        input_hw: The only size of input that there will be; None: any.

    Raises:
        ConfigError: no such network, none with such maps, or it does not take such input.
    """
    if name == config.backbone:
        return config
    with torch.device("meta"):
        wanted = Backbone(config).reductions
        found = _reductions(name)
        if not set(wanted) <= set(found):
            from dino_core.models.backbones.timm_body import no_pyramid

            raise no_pyramid(name, found, wanted)
        chosen = replace(
            config,
            variant=f"{config.variant}+{name}",
            backbone=name,
            backbone_out_indices=tuple(_last_place(stride, found) for stride in wanted),
            backbone_frozen_stages=0,
            backbone_drop_path=0.0,
        )
        _check_takes(chosen, input_hw)
    return chosen


def _reductions(name: str) -> Sequence[int]:
    """The stride of each map of a network."""
    if name in OWN_BACKBONES:
        config = ModelConfig(backbone=name, backbone_out_indices=(0,), backbone_frozen_stages=0)
        return cast("tuple[int, ...]", Backbone(config).body.reductions)
    from dino_core.models.backbones.timm_body import timm_reductions

    return timm_reductions(name)


def _last_place(value: int, among: Sequence[int]) -> int:
    return max(i for i, other in enumerate(among) if other == value)


def _check_takes(config: ModelConfig, input_hw: tuple[int, int] | None) -> None:
    """Raises ConfigError unless the network takes such input and gives maps of its strides."""
    height, width = input_hw or _ANY_HW
    backbone = Backbone(config).eval()
    try:
        maps = backbone(torch.empty(1, 3, height, width))
    except Exception as error:  # each network has its own way to refuse
        what = f"{height}x{width}" if input_hw else "of any size"
        raise ConfigError(
            f"backbone '{config.backbone}' does not take images {what} ({error})",
            "--model dino-nano --image-size N gives it squares of N pixels; or another backbone",
        ) from error
    for map_, channels, stride in zip(maps, backbone.channels, backbone.reductions, strict=True):
        batch, found, *size_hw = map_.shape
        least = [n // stride - 1 for n in (height, width)]  # without padding it is one less
        most = [-(-n // stride) for n in (height, width)]
        fits = all(a <= n <= b for a, n, b in zip(least, size_hw, most, strict=True))
        if (batch, found) != (1, channels) or not fits:
            raise ConfigError(
                f"backbone '{config.backbone}': its map of {channels} channels at stride {stride} "
                f"is {tuple(map_.shape)} for an image of {height}x{width}"
            )
