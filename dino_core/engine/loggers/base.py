"""What all loggers share: what they take, and how a run is described in numbers and names."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dino_core.config import to_dict
from dino_core.engine.events import EvaluationDone, Event, RunPlanned, StepDone
from dino_core.engine.run_folder import RunFolder
from dino_core.files import write_text

_SCORES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ms_per_image"),
)


class Logger(Protocol):
    """Takes the events of one run. An exception ends the logger and not the run."""

    def log(self, event: Event) -> None:
        """Take one event, and ignore kinds that mean nothing to it."""

    def close(self) -> None:
        """Write what is still in memory."""


@dataclass(frozen=True)
class Opening:
    """What a logger knows when it starts.

    Attributes:
        planned: The run.
        folder: Its folder, which exists.
        classes: Class names.
        data: Folder or file of the data set.
    """

    planned: RunPlanned
    folder: RunFolder
    classes: Sequence[str]
    data: str


def scalars(event: Event) -> dict[str, float]:
    """The finite numbers of an event, by the names that all loggers use; empty without numbers."""
    if isinstance(event, StepDone):
        values: dict[str, Any] = {f"loss/{name}": value for name, value in event.losses.items()}
        values |= {
            "train/lr": event.lr,
            "train/grad_norm": event.grad_norm,
            "train/epoch": event.epoch,
            "speed/images_per_s": event.images_per_s,
            "speed/memory_mb": event.memory_mb,
        }
    elif isinstance(event, EvaluationDone):
        values = {f"val/{name}": getattr(event.metrics, name) for name in _SCORES}
        values |= {f"val_ap/{name}": row.ap for name, row in event.metrics.per_class.items()}
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
        "network_dtype": planned.dtype,
    }
    recipe = to_dict(planned.config)
    values |= {f"loss.{name}": value for name, value in recipe.pop("loss").items()}
    values |= recipe
    plain = (str, int, float, bool)
    return {n: v if isinstance(v, plain) else json.dumps(v) for n, v in values.items()}


def remembered_id(folder: RunFolder, name: str, make: Callable[[], str]) -> tuple[str, bool]:
    """The id by which a service knows this run, and whether it is new; the same after a resume."""
    path = folder.state.parent / f"{name}.txt"
    if path.exists():
        return path.read_text(encoding="utf-8").strip(), False
    fresh = make()
    write_text(path, fresh + "\n", durable=True)
    return fresh, True


def picture_tag(folder: RunFolder, path: Path) -> str:
    """`plots/pr` for the run's plots/pr.png."""
    return path.relative_to(folder.root).with_suffix("").as_posix()
