"""The learning rate as a pure function of how far the run is: a run may end by the clock."""

from __future__ import annotations

import math

from dino_core.config import TrainConfig

WARMUP_SHARE = 0.1
"""The warm-up ends here at the latest, as a fraction of the run."""


def lr_factor(config: TrainConfig, step: int, progress: float, warmup_steps: int) -> float:
    """What the base rates are multiplied with in one optimiser step.

    Args:
        config: Shape of the schedule.
        step: Optimiser steps already done.
        progress: Fraction of the run that is done, 0 to 1.
        warmup_steps: The factor rises linearly over these, from 1 / warmup_steps; in a run so
            short that they are more than a tenth of it, over that tenth.
    """
    progress = min(max(progress, 0.0), 1.0)
    warmup = 1.0
    if warmup_steps > 0:
        warmup = min(1.0, max((step + 1) / warmup_steps, progress / WARMUP_SHARE))
    if config.schedule == "step":
        return warmup * config.step_gamma ** sum(progress >= m for m in config.step_milestones)
    end = config.final_lr_factor
    return warmup * (end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * progress)))
