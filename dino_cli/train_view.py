"""How a training run looks: the plan, a live bar or a few log lines, a row per evaluation."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dino_cli import render

if TYPE_CHECKING:
    from dino_core.checkpoints.surgery import TransferReport
    from dino_core.data.records import DatasetIndex, ImageRecord
    from dino_core.engine.events import (
        EvaluationDone,
        Event,
        RunFinished,
        RunPlanned,
        SpeedMeasured,
        StepDone,
    )

PLAIN_INTERVAL_S = 30.0  # between step lines in a log
_TERMS = ("class", "bbox", "giou")  # of the last layer; the tables of the run hold all
_WIDTHS = (8, 7, 8, 8, 8, 8, 6)
_HEADER = ("step", "epoch", "AP", "AP50", "AP75", "took", "")


class TrainView:
    """Shows the events of one run on stderr."""

    def __init__(self, progress: Any = None) -> None:
        self._progress = progress  # rich.progress.Progress on a terminal
        self._task = progress.add_task("", total=1.0, detail="starting") if progress else None
        self._header_shown = False
        self._last_line = -PLAIN_INTERVAL_S

    def show(self, event: Event) -> None:
        """Render one event."""
        from dino_core.engine import events

        if isinstance(event, events.RunPlanned):
            self.lines(plan_lines(event))
        elif isinstance(event, events.StepDone):
            self._step(event)
        elif isinstance(event, events.SpeedMeasured):
            self.lines([speed_line(event)])
        elif isinstance(event, events.EvaluationDone):
            self._evaluation(event)
        elif isinstance(event, (events.Warned, events.RolledBack)):
            self.lines([f"warning: {event.message}"])
        elif isinstance(event, events.RunFinished):
            self.lines(finished_lines(event))

    def lines(self, lines: Iterable[str]) -> None:
        """Print lines above the bar."""
        for line in lines:
            if self._progress is not None:
                self._progress.console.print(line, markup=False, highlight=False)
            else:
                render.note(line)

    def _step(self, event: StepDone) -> None:
        if self._progress is not None:
            text = bar_text(event)
            self._progress.update(self._task, completed=event.progress, detail=text)
            return
        now = time.monotonic()
        # The last step is always shown, so that a log ends with the final losses.
        if now - self._last_line >= PLAIN_INTERVAL_S or event.step == event.steps_total:
            self._last_line = now
            self.lines([step_line(event)])

    def _evaluation(self, event: EvaluationDone) -> None:
        metrics = event.metrics
        if not self._header_shown:
            self._header_shown = True
            self.lines([_row(_HEADER)])
        numbers = [_fraction(getattr(metrics, name)) for name in ("ap", "ap50", "ap75")]
        took = render.duration(event.seconds)
        best = "best" if event.best else ""
        self.lines([_row((str(event.step), str(event.epoch), *numbers, took, best))])


@contextmanager
def train_view() -> Iterator[TrainView]:
    """A view for one run; on a terminal with a live bar."""
    if not render.is_terminal(sys.stderr):
        yield TrainView()
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (BarColumn(bar_width=10), TaskProgressColumn(), TextColumn("{task.fields[detail]}"))
    with Progress(*columns, console=render.console(sys.stderr), transient=True) as progress:
        yield TrainView(progress)


def data_lines(dataset: DatasetIndex) -> list[str]:
    """What is in the data set: classes, and per split images, boxes and images without boxes."""
    names = [name for name in dataset.classes.names if name]
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    classes = render.counted(len(names), "class", "classes")
    lines = [f"data      {dataset.root} ({dataset.format}), {classes}: {shown}"]
    for split, records in dataset.splits.items():
        lines.append(f"  {split:<8}{_counts(records)}")
    return lines


def _counts(records: tuple[ImageRecord, ...]) -> str:
    boxes = sum(len(record.class_indices) for record in records)
    empty = sum(not len(record.class_indices) for record in records)
    images, empty_images = (render.counted(n, "image") for n in (len(records), empty))
    return f"{images}, {render.counted(boxes, 'box', 'boxes')}, {empty_images} without boxes"


def plan_lines(event: RunPlanned) -> list[str]:
    """Model, decisions with their reasons, length, memory and time of the run."""
    model, size = event.model, event.preprocess
    classes = render.counted(model.num_classes, "class", "classes")
    lines = [
        (
            f"model     {model.variant}: {model.backbone}, {event.parameters / 1e6:.1f} M "
            f"trainable parameters, {classes}, images up to {size.max_side} px"
        ),
        "plan",
        *decision_lines(event),
        *_queries_lines(event),
        f"schedule  {_schedule(event)}",
        *_trial_lines(event),
        f"folder    {event.out}",
    ]
    if event.transfer is not None:
        lines += weights_lines(event.transfer)
    if event.resumed_step:
        lines.append(f"resumed   after step {event.resumed_step}")
    return lines


def weights_lines(report: TransferReport) -> list[str]:
    """What was copied from the starting weights, which classes are new, and possible aliases."""
    fresh = f", {len(report.kept)} start at random" if report.kept else ""
    lines = [f"weights   {len(report.copied)} tensors copied{fresh}"]
    if report.by_class:
        taken = [
            f"{name} (as {report.aliases[name]})" if name in report.aliases else name
            for name in report.classes
        ]
        lines.append(f"  classes copied by name: {_listed(taken)}")
        lines.append(f"  classes that start at random: {_listed(report.new_classes)}")
    if report.near:
        first, other = next(iter(report.near.items()))
        pairs = [f"{name} ({old})" for name, old in report.near.items()]
        lines.append(
            f"  the model may know {', '.join(pairs)} by the name in parentheses; "
            f"if they mean the same: --class-alias '{first}={other}'"
        )
    return lines


def _listed(names: Sequence[str]) -> str:
    """`3 (a, b, c)`, at most the first twelve names."""
    rest = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"{len(names)} ({', '.join(names[:12])}{rest})" if names else "none"


def decision_lines(event: RunPlanned) -> list[str]:
    """A line per decision: name, value, reason, and the option that changes it."""
    config = event.config
    average = "EMA, " if config.ema else ""
    mixed = {"mosaic": config.mosaic, "copy-paste": config.copy_paste}
    mixing = "".join(f"{name} {share:g}, " for name, share in mixed.items() if share)
    rest = (
        f"  {'others':<18} {config.schedule} schedule, {mixing}{average}{event.dtype} on "
        f"{event.device}, seed {config.seed}"
    )
    if not event.plan.decisions:
        return [f"  {'recipe':<18} as in the run's config.toml", rest]
    lines = []
    for decision in event.plan.decisions:
        value = decision.value
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        option = "" if decision.asked else f" ({decision.option})"
        lines.append(f"  {decision.name:<18} {shown:<8} {decision.reason}{option}")
    return [*lines, rest]


def _queries_lines(event: RunPlanned) -> list[str]:
    """A warning where an image has more objects than the model can find."""
    if event.suggested_queries is None:
        return []
    return [
        f"warning   an image has {event.most_objects} objects, but the model finds at most "
        f"{event.model.num_queries}: --set model.num_queries={event.suggested_queries}"
    ]


def _schedule(event: RunPlanned) -> str:
    plan, config = event.plan, event.config
    step = f"{config.images_per_step} images per step"
    if event.processes > 1:
        step += f" on {event.processes} devices"
    per_epoch = f"{plan.steps_per_epoch:.4g}"
    epoch = f"{per_epoch} step{'' if per_epoch == '1' else 's'} per epoch, {step}"
    if plan.steps is None:
        return f"{plan.minutes:g} minutes, {epoch}"
    return f"{render.counted(plan.steps, 'step')}, {plan.epochs:.4g} epochs, {epoch}"


def _trial_lines(event: RunPlanned) -> list[str]:
    """Memory of the worst batch, and how long the run takes at its speed."""
    trial, ahead = event.trial, event.forecast
    if trial is None or ahead is None:
        return []
    worst, (height, width) = trial.worst, trial.worst.size_hw
    there = f" of {trial.limit_mb / 1024:.1f} GB" if trial.limit_mb is not None else ""
    parts = f" in {trial.parts} parts" if trial.parts > 1 else ""
    each = " on each device" if event.processes > 1 else ""
    lines = [
        f"memory    {trial.peak_mb / 1024:.1f} GB{there}{each}, tried with the worst batch{parts}: "
        f"{worst.images} x {height}x{width} with {worst.boxes} boxes each"
    ]
    speed = f"{ahead.images_per_s:.3g} images/s"
    if event.processes > 1:
        speed += f" if each device is as fast as this {event.device}"
    if event.plan.steps is None:
        return [*lines, f"time      about {ahead.steps} steps, {ahead.epochs:.3g} epochs; {speed}"]
    return [*lines, f"time      about {render.duration(ahead.seconds)}, {speed}"]


def bar_text(event: StepDone) -> str:
    """The text behind the bar, short enough for a narrow terminal."""
    memory = f"{event.memory_mb / 1024:.1f} GB"
    return (
        f"step {event.step} loss {event.losses['total']:.2f} lr {event.lr:.0e} "
        f"{event.images_per_s:.1f} img/s {memory} ETA {render.duration(event.eta_s)}"
    )


def step_line(event: StepDone) -> str:
    """One training step: place, losses, learning rate, speed, memory, time left."""
    total = f"/{event.steps_total}" if event.steps_total else f" ({100 * event.progress:.0f}%)"
    named = {name.removeprefix("loss_"): value for name, value in event.losses.items()}
    terms = " ".join(f"{name} {named[name]:.3f}" for name in _TERMS if name in named)
    return (
        f"step {event.step}{total}  epoch {event.epoch}  loss {named['total']:.3f} ({terms})  "
        f"lr {event.lr:.1e}  {event.images_per_s:.1f} images/s  {event.memory_mb:.0f} MB  "
        f"ETA {render.duration(event.eta_s)}"
    )


def speed_line(event: SpeedMeasured) -> str:
    """How far a run with a time limit will get."""
    ahead = event.forecast
    return (
        f"speed     {ahead.images_per_s:.3g} images/s: about {ahead.steps} steps, "
        f"{ahead.epochs:.3g} epochs in the {render.duration(ahead.seconds)} left"
    )


def finished_lines(event: RunFinished) -> list[str]:
    """The end of a run: how it went, AP per class, and where the model is."""
    from dino_core.evaluation.class_table import class_lines

    summary = event.summary
    took = render.duration(summary.seconds)
    steps, epochs = render.counted(summary.steps, "step"), render.counted(summary.epochs, "epoch")
    lines = [f"{steps}, {epochs} in {took}"]
    if summary.stopped_early:
        lines.append(f"stopped early: {summary.stopped_early}")
    if summary.best_ap is not None:
        lines.append(f"best AP {summary.best_ap:.3f} at step {summary.best_step}")
    lines += class_lines(summary.class_values())
    plots = summary.out / "plots"
    pictures = [f"pictures in {plots} and {summary.out / 'samples'}"] if plots.is_dir() else []
    return [*lines, f"model in {summary.best}", *pictures, f"results in {summary.out}"]


def _row(cells: Iterable[str]) -> str:
    return "".join(c.rjust(w) for c, w in zip(cells, _WIDTHS, strict=True)).rstrip()


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
