"""What a caller asks of the engine: one value that planning, building and training all take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dino_core.config import ModelConfig, TrainConfig
from dino_core.data.records import DatasetIndex


@dataclass(frozen=True)
class RunRequest:
    """A training run as it was asked for.

    Attributes:
        config: The recipe. Fields that are None are chosen by the plan.
        dataset: Splits "train" and, for evaluation, "val".
        out: The run folder. It must be new or empty, or with `resume` hold an earlier run.
        model: A variant's name or a model file.
        weights: Starting weights: a model file, "none" for random ones, None for those of `model`.
        model_config: Replaces the network's settings, except for its number of classes.
        resume: Continue the run in `out`; `model`, `weights` and `model_config` are then ignored.
        processes: Number of training processes to plan for; None for those that exist.
    """

    config: TrainConfig
    dataset: DatasetIndex
    out: Path
    model: str = "dino-nano"
    weights: str | Path | None = None
    model_config: ModelConfig | None = None
    resume: bool = False
    processes: int | None = None
