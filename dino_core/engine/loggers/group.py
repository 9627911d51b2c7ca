"""Where a run's numbers go besides its folder's tables: TensorBoard, Weights & Biases, MLflow.

Each takes the events of `fit()` as they are. The tables (metrics.csv, metrics.jsonl) are always
written and are nobody's choice; TensorBoard is used where it is installed, the others when asked.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dino_core.config import TrainConfig, to_dict
from dino_core.engine.events import EvaluationDone, Event, RunPlanned, StepDone, Warned
from dino_core.engine.run_folder import RunFolder
from dino_core.errors import ConfigError, DinoError
from dino_core.files import write_text

_PACKAGES = {
    "tensorboard": ("tensorboard", "logging"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
}  # name to the module that must be there and our extra that installs it
_SCORES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ms_per_image"),
)


class Logger(Protocol):
    """Takes the events of one run; an exception ends the logger, not the run."""

    def log(self, event: Event) -> None:
        """Take one event; kinds that mean nothing to it are passed over."""

    def close(self) -> None:
        """Write what is still in memory."""


@dataclass(frozen=True)
class Opening:
    """What a logger needs to know to begin.

    Attributes:
        planned: The run.
        folder: Its folder, which exists.
        classes: Class names.
        data: Where the data are.
    """

    planned: RunPlanned
    folder: RunFolder
    classes: Sequence[str]
    data: str


def check_loggers(config: TrainConfig) -> None:
    """Raises ConfigError when a logger was asked for whose package is not installed."""
    for name in config.loggers or ():
        module, extra = _PACKAGES.get(name, ("json", ""))
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"--logger {name}: the package '{module}' is not installed",
                f"pip install 'dino-detector[{extra}]', or leave it out",
            )


def chosen_loggers(config: TrainConfig) -> tuple[str, ...]:
    """The loggers of a run besides its tables: those asked for, else TensorBoard if it is there."""
    if config.loggers is not None:
        return tuple(dict.fromkeys(name for name in config.loggers if name != "csv"))
    return ("tensorboard",) if importlib.util.find_spec("tensorboard") is not None else ()


def open_loggers(opening: Opening) -> LoggerGroup:
    """Start the loggers of a run.

    Raises:
        DinoError: one that was asked for cannot start (TensorBoard by default only warns).
    """
    group = LoggerGroup()
    for name in chosen_loggers(opening.planned.config):
        try:
            group.members[name] = _open(name, opening)
        except Exception as error:
            if opening.planned.config.loggers is not None:
                group.close()
                hint = "check its settings, or leave it out of --logger"
                raise DinoError(f"--logger {name}: {_reason(error)}", hint) from error
            group.failures.append(f"{name}: {_reason(error)}; the run goes on without it")
    return group


def _open(name: str, opening: Opening) -> Logger:
    if name == "tensorboard":
        from dino_core.engine.loggers.tensorboard import TensorBoardLogger

        return TensorBoardLogger(opening)
    if name == "wandb":
        from dino_core.engine.loggers.wandb import WandbLogger

        return WandbLogger(opening)
    from dino_core.engine.loggers.mlflow import MlflowLogger

    return MlflowLogger(opening)


@dataclass
class LoggerGroup:
    """All loggers of a run, none of which can end it.

    Attributes:
        members: Name to logger.
        failures: What to warn of at the next event.
    """

    members: dict[str, Logger] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def log(self, event: Event) -> list[Warned]:
        """Hand an event to each; what fails is left out from then on, with a warning."""
        for name, logger in list(self.members.items()):
            try:
                logger.log(event)
            except Exception as error:
                del self.members[name]
                self.failures.append(f"{name}: {_reason(error)}; the run goes on without it")
                _close(logger)
        failures, self.failures = self.failures, []
        return [Warned(message, getattr(event, "step", 0)) for message in failures]

    def close(self) -> None:
        """Close each, whatever becomes of it."""
        members, self.members = self.members, {}
        for logger in members.values():
            _close(logger)


def _close(logger: Logger) -> None:
    with contextlib.suppress(Exception):
        logger.close()


def _reason(error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return error.message if isinstance(error, DinoError) else first


def scalars(event: Event) -> dict[str, float]:
    """The numbers of an event by the names that the loggers show; nothing for other events."""
    if isinstance(event, StepDone):
        values = {f"loss/{name}": value for name, value in event.losses.items()}
        values |= {
            "train/lr": event.lr,
            "train/grad_norm": event.grad_norm,
            "train/epoch": event.epoch,
            "speed/images_per_s": event.images_per_s,
            "speed/memory_mb": event.memory_mb,
        }
    elif isinstance(event, EvaluationDone):
        numbers: Mapping[str, Any] = event.metrics.to_dict()
        values = {f"val/{n}": v for n, v in numbers.items() if n in _SCORES}
        values |= {f"val_ap/{name}": row["ap"] for name, row in numbers["per_class"].items()}
    else:
        return {}
    return {n: float(v) for n, v in values.items() if v is not None and math.isfinite(v)}


def hyper_parameters(opening: Opening) -> dict[str, str | int | float | bool]:
    """The recipe, the model and the data as flat plain values."""
    planned = opening.planned
    values: dict[str, Any] = {
        "variant": planned.model.variant,
        "backbone": planned.model.backbone,
        "parameters": planned.parameters,
        "train_images": planned.train_images,
        "val_images": planned.val_images,
        "classes": len(opening.classes),
        "data": opening.data,
        "max_side": planned.preprocess.max_side,
        "device": planned.device,
        "arithmetic": planned.dtype,
    }
    recipe = to_dict(planned.config)
    values |= {f"loss.{name}": value for name, value in recipe.pop("loss").items()}
    values |= recipe
    plain = (str, int, float, bool)
    return {n: v if isinstance(v, plain) else json.dumps(v) for n, v in values.items()}


def remembered_id(folder: RunFolder, name: str, make: Callable[[], str]) -> tuple[str, bool]:
    """The id under which a service knows this run, the same after a resume; and if it is new."""
    path = folder.state.parent / f"{name}.txt"
    if path.exists():
        return path.read_text(encoding="utf-8").strip(), False
    fresh = make()
    write_text(path, fresh + "\n", durable=True)
    return fresh, True


def picture_tag(folder: RunFolder, path: Path) -> str:
    """`plots/pr` for the run's plots/pr.png."""
    return path.relative_to(folder.root).with_suffix("").as_posix()
