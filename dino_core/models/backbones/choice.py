"""Another backbone for a model: which of its maps to take, and whether it fits at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from dino_core.config import ModelConfig
from dino_core.errors import ConfigError
from dino_core.models.backbones.backbone import Backbone
from dino_core.models.backbones.body import no_pyramid
from dino_core.models.backbones.table import reductions_of

# Networks that only take certain sizes, such as vision transformers of a fixed input, fail here
# instead of at the first odd image of a run.
_ANY_HW = (201, 333)  # pixels; a size that no stride divides


def with_backbone(
    config: ModelConfig, name: str, input_hw: tuple[int, int] | None = None
) -> ModelConfig:
    """The same model on another backbone, with maps of the same strides.

    No stage of the new backbone is frozen and its stochastic depth is off, since it starts from
    random weights.

    Args:
        config: The model.
        name: One of this package's networks or any of timm's.
        input_hw: Height and width in pixels if all inputs have one size; None for any size.

    Raises:
        ConfigError: There is no such network, it lacks maps of these strides, or it does not accept
            such input.
    """
    if name == config.backbone:
        return config
    # Networks without memory or values: shapes are all that is asked, also for the largest ones.
    with torch.device("meta"):
        wanted = Backbone(config).reductions
        found = reductions_of(name)
        if not set(wanted) <= set(found):
            raise no_pyramid(name, found, wanted)
        chosen = replace(
            config,
            variant=f"{config.variant}+{name}",
            backbone=name,
            backbone_out_indices=tuple(_last_place(stride, found) for stride in wanted),
            # Frozen random weights would stay random.
            backbone_frozen_stages=0,
            backbone_drop_path=0.0,
        )
        _check_takes(chosen, input_hw)
    return chosen


def _last_place(value: int, among: Sequence[int]) -> int:
    return max(i for i, other in enumerate(among) if other == value)


def _check_takes(config: ModelConfig, input_hw: tuple[int, int] | None) -> None:
    """Raises ConfigError unless the network accepts such input and gives maps of its strides."""
    height, width = input_hw or _ANY_HW
    backbone = Backbone(config).eval()
    try:
        maps = backbone(torch.empty(1, 3, height, width))
    except Exception as error:  # each network refuses with an error of its own
        what = f"{height}x{width}" if input_hw else "of any size"
        raise ConfigError(
            f"backbone '{config.backbone}' does not take images {what} ({error})",
            "use --model dino-nano --image-size N for squares of N pixels, or another backbone",
        ) from error
    for map_, channels, stride in zip(maps, backbone.channels, backbone.reductions, strict=True):
        batch, found, *size_hw = map_.shape
        # Networks without padding lose one row and column; others round up.
        least = [n // stride - 1 for n in (height, width)]
        most = [-(-n // stride) for n in (height, width)]
        fits = all(a <= n <= b for a, n, b in zip(least, size_hw, most, strict=True))
        if (batch, found) != (1, channels) or not fits:
            raise ConfigError(
                f"backbone '{config.backbone}': its map of {channels} channels at stride {stride} "
                f"is {tuple(map_.shape)} for an image of {height}x{width}"
            )
