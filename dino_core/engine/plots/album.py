"""Draws a run's plots; a failed plot is a warning and never affects training.

Plots are drawn between two steps from what the run has computed anyway, without random numbers.
Evaluations are drawn as long as drawing stays within a small share of the run's time; what was
postponed is drawn at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dino_core.config import PreprocessConfig
from dino_core.data.batching import Batch
from dino_core.data.records import DatasetIndex
from dino_core.engine.events import Event, PicturesDrawn, Warned
from dino_core.engine.plots.curves import draw_curves
from dino_core.engine.plots.labels import draw_labels
from dino_core.engine.plots.pictures import (
    choose_samples,
    grid,
    network_view,
    png_bytes,
    sample_sheet,
)
from dino_core.engine.plots.scores import draw_confusion, draw_precision_recall
from dino_core.engine.run_folder import RunFolder
from dino_core.errors import DataError, DinoError
from dino_core.evaluation.confusion import confusion_matrix
from dino_core.evaluation.evaluate import EvaluationResult
from dino_core.evaluation.precision_recall import precision_recall
from dino_core.files import atomic_file
from dino_core.inference.draw import encode_image
from dino_core.inference.names import NameBook
from dino_core.processing.preprocess import UInt8Image

_SHARE = 0.02  # share of the run's time for drawing evaluations before its end
_SAMPLES = 8
_BATCH_IMAGES, _BATCH_STEPS = 12, 3  # images in batches.png, from at most this many steps
_THRESHOLD = 0.3  # score threshold where no detection is right, so that none is the best


@dataclass(frozen=True)
class _Scored:
    """The best evaluation so far, which has not been drawn yet."""

    result: EvaluationResult
    step: int


@dataclass
class Album:
    """Draws the plots of one run; each method yields what was drawn, or a warning.

    Attributes:
        folder: The run folder.
        dataset: The data set of the run.
        preprocess: How an image becomes the network's input.
        wanted: False makes every method do nothing.
        seconds: Seconds that drawing has taken in this session.
    """

    folder: RunFolder
    dataset: DatasetIndex
    preprocess: PreprocessConfig
    wanted: bool
    seconds: float = 0.0
    _warned: bool = False
    _scored: _Scored | None = None
    _curves_due: bool = False
    _tiles: list[UInt8Image] = field(default_factory=list)
    _steps_seen: int = 0
    _batches_done: bool = False

    def labels(self) -> Iterator[Event]:
        """Draw labels.png before the first step, unless a resumed run has it already."""
        path = self.folder.plots / "labels.png"
        if self.wanted and not path.exists():
            yield from self._draw(0, [lambda: _write(path, self._labels())])

    def batches(self, batches: Sequence[Batch], step: int) -> Iterator[Event]:
        """Draw batches.png from the batches of the first steps; `step` steps were done before."""
        if not self.wanted or self._batches_done:
            return
        if step >= _BATCH_STEPS:  # resumed later: the plot exists, or never will
            self._batches_done = True
            return
        yield from self._draw(step, [lambda: self._add_tiles(batches)])
        self._steps_seen += 1
        if len(self._tiles) >= _BATCH_IMAGES or self._steps_seen >= _BATCH_STEPS:
            yield from self._draw_batches(step)

    def evaluated(
        self, result: EvaluationResult, best: bool, step: int, elapsed_s: float
    ) -> Iterator[Event]:
        """Draw the curves and a best evaluation's plots, unless drawing took too long so far."""
        if not self.wanted:
            return
        self._curves_due = True
        lost = self._scored is None and not (self.folder.plots / "pr.png").exists()
        if best or lost:  # lost: the run was killed before the best evaluation was drawn
            self._scored = _Scored(result, step)
        if self.seconds <= _SHARE * elapsed_s:
            yield from self._draw_evaluation(step)

    def finish(self, step: int) -> Iterator[Event]:
        """Draw what was postponed."""
        if not self.wanted:
            return
        if not self._batches_done:
            yield from self._draw_batches(step)
        self._curves_due = True
        yield from self._draw_evaluation(step)

    def _draw(self, step: int, drawings: Sequence[Callable[[], list[Path]]]) -> Iterator[Event]:
        """Make drawings one after the other; the first failure of a run becomes a warning."""
        started = time.monotonic()
        paths: list[Path] = []
        warning: Warned | None = None
        for drawing in drawings:
            try:
                paths += drawing()
            except Exception as error:  # of any kind: training is worth more than a plot
                if not self._warned:
                    self._warned = True
                    warning = Warned(f"plots: {_reason(error)}; training continues", step)
        self.seconds += time.monotonic() - started
        if warning is not None:
            yield warning
        if paths:
            yield PicturesDrawn(tuple(paths), step)

    def _labels(self) -> bytes:
        return draw_labels(self.dataset, self.preprocess)

    def _add_tiles(self, batches: Sequence[Batch]) -> list[Path]:
        names = self.dataset.classes.names
        for batch in batches:
            shown = (
                0 if batch.features is not None else len(batch.image_ids)
            )  # cached features have no pixels
            for n in range(min(shown, _BATCH_IMAGES - len(self._tiles))):
                target = batch.targets[n]
                tile = network_view(
                    batch.images[n].numpy(),
                    batch.padding_mask[n].numpy(),
                    target.boxes_cxcywh.numpy(),
                    [names[i] for i in target.labels.tolist()],
                    self.preprocess,
                )
                self._tiles.append(tile)
        return []

    def _draw_batches(self, step: int) -> Iterator[Event]:
        self._batches_done = True
        tiles, self._tiles = self._tiles, []
        if tiles:
            caption = f"the first {len(tiles)} training images as the network sees them"
            page = grid(tiles, f"{caption}; padding is striped")
            path = self.folder.plots / "batches.png"
            yield from self._draw(step, [lambda: _write(path, png_bytes(page))])

    def _draw_evaluation(self, step: int) -> Iterator[Event]:
        drawings: list[Callable[[], list[Path]]] = []
        if self._curves_due:
            self._curves_due = False
            path = self.folder.plots / "curves.png"
            drawings.append(lambda: _write(path, draw_curves(self.folder.rows())))
        scored, self._scored = self._scored, None
        if scored is not None:
            drawings.append(lambda: self._draw_best(scored))
        yield from self._draw(step, drawings)

    def _draw_best(self, scored: _Scored) -> list[Path]:
        """Draw pr.png, confusion.png and the samples of one evaluation."""
        result, names = scored.result, self.dataset.classes
        title = f"step {scored.step}, {len(result.records)} images"
        curves = precision_recall(result.records, result.predictions, names)
        best = curves.best.threshold
        threshold = _THRESHOLD if best is None else best
        matrix = confusion_matrix(result.records, result.predictions, names, threshold)
        plots = self.folder.plots
        paths = _write(plots / "pr.png", draw_precision_recall(curves, title))
        paths += _write(plots / "confusion.png", draw_confusion(matrix, title))
        return paths + self._draw_samples(result, threshold)

    def _draw_samples(self, result: EvaluationResult, threshold: float) -> list[Path]:
        every = self.dataset.splits["val"]
        chosen = {every[i].path for i in choose_samples(every, _SAMPLES)}
        book, paths = NameBook(), []
        for record, predicted in zip(result.records, result.predictions, strict=True):
            if record.path not in chosen:
                continue
            try:
                sheet = sample_sheet(record, predicted, self.dataset.classes.names, threshold)
            except DataError:  # the image has become unreadable: the others are enough
                continue
            name = f"{book.stem('', record.path.name)}.jpg"
            paths += _write(self.folder.samples / name, encode_image(sheet, ".jpg"))
        return paths


def _write(path: Path, data: bytes) -> list[Path]:
    with atomic_file(path) as file:
        file.write(data)
    return [path]


def _reason(error: Exception) -> str:
    if isinstance(error, DinoError):
        return error.message
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
