"""The loggers that there are. To add one, write a file beside this one and add its row here.

The command line reads its choices and its help from this table, so nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dino_core.engine.loggers.base import Logger, Opening
from dino_core.engine.loggers.mlflow import MlflowLogger
from dino_core.engine.loggers.tensorboard import TensorBoardLogger
from dino_core.engine.loggers.wandb import WandbLogger


@dataclass(frozen=True)
class LoggerKind:
    """One logging service.

    Attributes:
        package: The module that must be installed.
        extra: The extra of this package that installs it.
        open: Starts a logger for a run; it imports the package.
    """

    package: str
    extra: str
    open: Callable[[Opening], Logger]


LOGGERS = {
    "tensorboard": LoggerKind("tensorboard", "logging", TensorBoardLogger),
    "wandb": LoggerKind("wandb", "wandb", WandbLogger),
    "mlflow": LoggerKind("mlflow", "mlflow", MlflowLogger),
}

TABLES_ONLY = "csv"
"""As a logger's name: metrics.csv and metrics.jsonl, which every run writes anyway."""

LOGGER_NAMES = (TABLES_ONLY, *LOGGERS)
"""The values of `TrainConfig.loggers` and of `--logger`."""
