"""AdamW in two groups, as published: "backbone" in a name means a tenth of the rate."""

from __future__ import annotations

import torch
from torch import nn

from dino_core.config import TrainConfig

BASE_LR = "base_lr"
"""Key of a parameter group: its rate before the schedule's factor."""


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay on every one of them, biases included."""
    backbone: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if "backbone" in name else rest).append(parameter)
    rates = ((rest, config.lr), (backbone, config.lr * config.backbone_lr_factor))
    groups = [{"params": ps, "lr": lr, BASE_LR: lr} for ps, lr in rates if ps]
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's rate becomes its base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group[BASE_LR] * factor
