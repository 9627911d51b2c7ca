"""How long a run is, decided in one place, each decision with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dino_core.config import TrainConfig
from dino_core.data.records import DatasetIndex
from dino_core.engine.schedule import WARMUP_SHARE
from dino_core.errors import ConfigError, DataError

_AIM_STEPS = 3000
_MIN_EPOCHS, _MAX_EPOCHS = 12, 100
_EVALUATION_SHARE = 0.15  # at most this share of the time


@dataclass(frozen=True)
class Plan:
    """The length of a run.

    Attributes:
        steps: Optimiser steps in all; None when the clock decides.
        minutes: Wall time; None when steps decide.
        steps_per_epoch: Optimiser steps in one pass over the training split, at least a fraction.
        warmup_steps: Steps over which the rate rises.
        reasons: Why, one sentence a decision.
    """

    steps: int | None
    minutes: float | None
    steps_per_epoch: float
    reasons: tuple[str, ...]

    @property
    def epochs(self) -> float | None:
        """The run's length in passes over the training split."""
        return None if self.steps is None else self.steps / self.steps_per_epoch

    def progress(self, step: int, elapsed_s: float, reserve_s: float = 0.0) -> float:
        """Fraction of the run that is done after `step` steps and `elapsed_s` seconds.

        Args:
            step: Optimiser steps done.
            elapsed_s: Wall time so far, evaluation included.
            reserve_s: Time kept free at the end (the last evaluation); only the clock cares.
        """
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.minutes is not None
        return min(1.0, elapsed_s / max(1.0, self.minutes * 60.0 - reserve_s))


def plan(config: TrainConfig, dataset: DatasetIndex, processes: int = 1) -> Plan:
    """Decide the length.

    Raises:
        ConfigError: more than one length given, or one that is not positive.
        DataError: no training image, or no box in any.
    """
    records = dataset.splits.get("train", ())
    if not records:
        raise DataError(f"{dataset.root}: no training images")
    if not any(len(r.class_indices) for r in records):
        raise DataError(f"{dataset.root}: no boxes in {len(records)} training images")
    _check(config)
    images_a_step = config.batch * config.accumulate * processes
    batches = max(1, len(records) // config.batch)  # a last, smaller one is left out
    steps_per_epoch = batches / (config.accumulate * processes)
    reasons: list[str] = []
    minutes = config.minutes
    steps: int | None = None
    if config.steps is not None:
        steps = config.steps
        reasons.append(f"{steps} steps, as asked")
    elif config.epochs is not None:
        steps = max(1, math.ceil(config.epochs * steps_per_epoch))
        reasons.append(f"{config.epochs} epochs, as asked: {steps} steps of {images_a_step} images")
    elif minutes is not None:
        reasons.append(f"{minutes:g} minutes, as asked; the rate falls with the clock")
    else:
        epochs = min(max(_AIM_STEPS / steps_per_epoch, _MIN_EPOCHS), _MAX_EPOCHS)
        steps = math.ceil(epochs * steps_per_epoch)
        reasons.append(
            f"{epochs:.0f} epochs ({steps} steps) for {len(records)} images: about {_AIM_STEPS} "
            f"steps, within {_MIN_EPOCHS} to {_MAX_EPOCHS} epochs"
        )
    if steps is not None and config.warmup_steps > WARMUP_SHARE * steps:
        reasons.append("the warm-up is a tenth of this short run")
    return Plan(steps, minutes if steps is None else None, steps_per_epoch, tuple(reasons))


def _check(config: TrainConfig) -> None:
    lengths = {"steps": config.steps, "epochs": config.epochs, "minutes": config.minutes}
    given = {name: value for name, value in lengths.items() if value is not None}
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} both give the run's length", "give one of them")
    positive = {**given, "batch": config.batch, "accumulate": config.accumulate, "lr": config.lr}
    for name, value in positive.items():
        if value <= 0:
            raise ConfigError(f"{name} = {value}: must be greater than 0")


def evaluation_due(
    elapsed_s: float, evaluating_s: float, last_s: float | None, epochs_it_takes: float
) -> bool:
    """Whether evaluating now keeps evaluation within its share of the time.

    Args:
        elapsed_s: Seconds of the run so far.
        evaluating_s: Seconds of it spent evaluating.
        last_s: What the last evaluation took; None before the first.
        epochs_it_takes: Validation images over training images seen, to guess the first one's cost.
    """
    guess = elapsed_s * epochs_it_takes / 3  # a forward pass is a third of a training step
    cost = guess if last_s is None else last_s
    return evaluating_s + cost <= _EVALUATION_SHARE * (elapsed_s + cost)
