"""The learning rate as a pure function of how far the run is, so that a run can end by the clock."""

from __future__ import annotations

import math

from dino_core.config import TrainConfig


def lr_factor(config: TrainConfig, step: int, progress: float, warmup_steps: int) -> float:
    """What the base rates are multiplied with in one optimiser step.

    Args:
        config: Shape of the schedule.
        step: Optimiser steps already done.
        progress: Fraction of the run that is done, 0 to 1.
        warmup_steps: The factor rises linearly over these, from 1 / warmup_steps.
    """
    progress = min(max(progress, 0.0), 1.0)
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
    if config.schedule == "step":
        return warmup * config.step_gamma ** sum(progress >= m for m in config.step_milestones)
    end = config.final_lr_factor
    return warmup * (end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * progress)))
