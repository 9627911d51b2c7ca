"""The learning rate as a function of progress, since a time limit may end a run."""

from __future__ import annotations

import math

from dino_core.config import TrainConfig

WARMUP_SHARE = 0.1
"""Fraction of the run after which the warm-up ends at the latest."""


def lr_factor(config: TrainConfig, step: int, progress: float, warmup_steps: int) -> float:
    """The factor of all learning rates in one optimizer step.

    Args:
        config: Shape of the schedule.
        step: Optimizer steps done before this one.
        progress: Fraction of the run that is done, from 0 to 1.
        warmup_steps: The factor rises linearly over this many steps, from 1 / warmup_steps. In a
            short run it rises over `WARMUP_SHARE` of the run instead.
    """
    progress = min(max(progress, 0.0), 1.0)
    warmup = 1.0
    if warmup_steps > 0:
        # The larger of the two: in a short run the warm-up may not last longer than its share.
        warmup = min(1.0, max((step + 1) / warmup_steps, progress / WARMUP_SHARE))
    if config.schedule == "step":
        # Each milestone that has passed multiplies once more.
        return warmup * config.step_gamma ** sum(progress >= m for m in config.step_milestones)
    end = config.final_lr_factor
    return warmup * (end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * progress)))
