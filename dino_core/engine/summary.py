"""The outcome of a training run: what `train()` returns and summary.json holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_core.engine.parallel.collectives import rank
from dino_core.evaluation.coco_metrics import ClassMetrics, Metrics

if TYPE_CHECKING:
    from dino_core.engine.run import Run


@dataclass(frozen=True)
class RunSummary:
    """The outcome of a finished run.

    Attributes:
        out: The run folder.
        model: Name of the variant.
        start: Where the weights came from: a name, a file, or "none".
        data: Folder or file of the data set.
        train_images: Images in the training split.
        val_images: Readable images in the validation split.
        steps: Optimizer steps done.
        epochs: Completed passes over the training split.
        seconds: Working time of all sessions, evaluation included.
        seconds_evaluating: The part of it that was spent on evaluation.
        skipped_steps: Steps without an update, because of the loss or of unreadable images.
        rollbacks: How often the run returned to its last checkpoint.
        unreadable_images: A message for each image that could not be read.
        stopped_early: Why the run stopped before its planned end; None where it did not.
        best_ap: AP of the best evaluation; None without a validation split.
        best_step: Optimizer steps done at the best evaluation.
        best: Model file with the weights of the best evaluation.
        last: Model file with the last weights.
        best_per_class: Class name to its numbers at the best evaluation. Only rank 0 has them.
        metrics: The last evaluation of this session; None without one.
        data_warnings: What was left out or repaired when the data were read, a sentence per kind.
    """

    out: Path
    model: str
    start: str
    data: str
    train_images: int
    val_images: int
    steps: int
    epochs: int
    seconds: float
    seconds_evaluating: float
    skipped_steps: int
    rollbacks: int
    unreadable_images: tuple[str, ...]
    stopped_early: str | None
    best_ap: float | None
    best_step: int | None
    best: Path
    last: Path
    best_per_class: Mapping[str, ClassMetrics] | None
    metrics: Metrics | None
    data_warnings: tuple[str, ...] = ()

    def class_values(self) -> dict[str, dict[str, Any]]:
        """`best_per_class` as plain values; empty where there are none."""
        per_class = self.best_per_class or {}
        return {name: dataclasses.asdict(numbers) for name, numbers in per_class.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as in summary.json."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["out"]  # the file lies in that folder, which may be moved
        return {
            "schema": 1,
            **values,
            "unreadable_images": list(self.unreadable_images),
            "data_warnings": list(self.data_warnings),
            "best": str(self.best),
            "last": str(self.last),
            "best_per_class": None if self.best_per_class is None else self.class_values(),
            "metrics": None if self.metrics is None else self.metrics.to_dict(),
        }


def summarize(run: Run) -> RunSummary:
    """The outcome of a run that has done its last step and its last evaluation."""
    counters = run.counters
    return RunSummary(
        out=run.folder.root,
        model=run.start.model.config.variant,
        start=run.start.origin,
        data=str(run.dataset.root),
        train_images=len(run.dataset.splits["train"]),
        val_images=len(run.val_records),
        steps=counters.step,
        epochs=counters.epoch,
        seconds=round(run.clock.elapsed_s, 1),
        seconds_evaluating=round(counters.evaluating_s, 1),
        skipped_steps=counters.skipped,
        rollbacks=counters.sentinel.rollbacks,
        unreadable_images=tuple(counters.unreadable.values()),
        stopped_early=run.stopped_early or None,
        best_ap=counters.best,
        best_step=counters.best_step,
        best=run.folder.best,
        last=run.folder.last,
        best_per_class=_best_per_class(run),
        metrics=run.metrics,
        data_warnings=run.dataset.warnings,
    )


def _best_per_class(run: Run) -> dict[str, ClassMetrics] | None:
    """Each class's numbers at the best evaluation, which an earlier session may have done."""
    if rank() != 0:  # only rank 0 writes the rows
        return None
    for row in reversed(run.folder.rows()):
        if row["event"] == "evaluation" and row["step"] == run.counters.best_step:
            return {name: ClassMetrics(**numbers) for name, numbers in row["per_class"].items()}
    return None
