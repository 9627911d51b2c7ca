"""AdamW with three learning rates; as published, a parameter's name decides which one it gets."""

from __future__ import annotations

import torch
from torch import nn

from dino_core.config import ResolvedConfig

BASE_LR = "base_lr"
"""Key in a parameter group: its learning rate before the schedule's factor."""

_OFFSETS = "sampling_offsets"  # detrex and mmdet add reference_points, which DINO does not have


def build_optimizer(model: nn.Module, config: ResolvedConfig) -> torch.optim.AdamW:
    """AdamW over all trainable parameters, with weight decay on all of them, biases included.

    The backbone learns at `backbone_lr_factor` of the learning rate, and the sampling offsets of
    deformable attention at `offsets_lr_factor` of it.
    """
    rest: list[nn.Parameter] = []
    backbone: list[nn.Parameter] = []
    offsets: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # A substring, as in the official code, so it holds for every wrapper's prefix.
            group = backbone if "backbone" in name else offsets if _OFFSETS in name else rest
            group.append(parameter)
    factors = (1.0, config.backbone_lr_factor, config.offsets_lr_factor)
    groups = [
        {"params": parameters, "lr": config.lr * factor, BASE_LR: config.lr * factor}
        for parameters, factor in zip((rest, backbone, offsets), factors, strict=True)
        # A frozen backbone has no group.
        if parameters
    ]
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of each group to `factor` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group[BASE_LR] * factor
