"""AdamW in groups of one rate each: what a name contains decides its group, as published."""

from __future__ import annotations

import torch
from torch import nn

from dino_core.config import ResolvedConfig

BASE_LR = "base_lr"
"""Key of a parameter group: its rate before the schedule's factor."""

_OFFSETS = "sampling_offsets"  # detrex and mmdet also name reference_points, which DINO has none of


def build_optimizer(model: nn.Module, config: ResolvedConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay on every one of them, biases included.

    "backbone" in a name means `backbone_lr_factor` of the rate, an attention's sampling offsets
    `offsets_lr_factor` of it.
    """
    rest: list[nn.Parameter] = []
    backbone: list[nn.Parameter] = []
    offsets: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = backbone if "backbone" in name else offsets if _OFFSETS in name else rest
            group.append(parameter)
    factors = (1.0, config.backbone_lr_factor, config.offsets_lr_factor)
    groups = [
        {"params": parameters, "lr": config.lr * factor, BASE_LR: config.lr * factor}
        for parameters, factor in zip((rest, backbone, offsets), factors, strict=True)
        if parameters
    ]
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's rate becomes its base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group[BASE_LR] * factor
