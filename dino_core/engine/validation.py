"""Evaluation during training: when it is due, what it scores, and what follows from the score."""

from __future__ import annotations

from collections.abc import Iterator

from dino_core.engine.events import EvaluationDone, Event, Warned
from dino_core.engine.parallel.collectives import is_distributed
from dino_core.engine.parallel.evaluate import evaluate_together
from dino_core.engine.run import Run
from dino_core.engine.trouble import merged
from dino_core.errors import DataError
from dino_core.evaluation.evaluate import EvaluationResult
from dino_core.processing.preprocess import load_image


def validation_due(run: Run) -> bool:
    """Whether to evaluate at the end of this epoch."""
    val_images = len(run.val_records)
    if not val_images or run.counters.epoch % run.config.eval_every_epochs:
        return False
    return run.clock.evaluation_due(val_images, len(run.dataset.splits["train"]))


def validate(run: Run) -> Iterator[Event]:
    """Score the model that would be shipped now, and save it where it is the best so far."""
    counters, clock = run.counters, run.clock
    # Set before the work, so a run that ends here does not evaluate the same weights twice.
    run.evaluated_step = counters.step
    clock.begin_evaluation()
    try:
        result = _scored(run)
    except DataError:  # an image has become unreadable since the start: the others are enough
        yield from _leave_out_unreadable(run)
        result = _scored(run)
    run.metrics = result.metrics
    seconds = clock.evaluation_s()
    # Without any object of a known class there is no AP. Counting it as 0 keeps the comparison
    # going.
    score = run.metrics.ap if run.metrics.ap is not None else 0.0
    better = counters.best is None or score > counters.best
    best = better or score == counters.best  # on ties keep the checkpoint that trained longer
    # Saved before the event: the caller may stop the run when it learns of the best score.
    saved = [run.saver.save_best(run.meta())] if best else []
    if best:
        counters.best, counters.best_step = score, counters.step
    counters.since_best = 0 if better else counters.since_best + 1
    yield EvaluationDone(counters.step, counters.epoch, run.metrics, best, seconds)
    yield from saved
    yield from run.album.evaluated(result, best, counters.step, clock.elapsed_s)
    # Only rank 0 draws, but all processes must charge that time to evaluation.
    clock.end_evaluation()


def out_of_patience(run: Run) -> str:
    """Why the run stops now, because its AP no longer improves, or ""."""
    patience = run.config.patience
    if patience is None or run.counters.since_best < patience:
        return ""
    return f"no better AP in {patience} evaluations"


def _scored(run: Run) -> EvaluationResult:
    try:
        return evaluate_together(
            run.saver.whole_model(),
            run.val_records,
            run.dataset.classes,
            run.start.preprocess,
            # Where training had to split its batches, evaluation takes no more images at a time.
            batch=max(1, run.config.batch // run.stepper.parts),
            device=run.stepper.device,
            # Not the data type of training: `dino eval` must report the same for the saved model.
            dtype="auto",
            interrupted=lambda: bool(run.clock.interrupts),
        )
    except KeyboardInterrupt:
        # All processes have learned of the interrupt inside, so they stop together and can save.
        run.clock.stopping = is_distributed()
        raise


def _leave_out_unreadable(run: Run) -> Iterator[Event]:
    """Find the validation images that cannot be read.

    Raises:
        DataError: they are half of the split or more.
    """
    records = run.val_records
    unread: dict[str, str] = {}
    # Every process reads all images itself: files may be missing on one machine only.
    for record in records:
        try:
            load_image(record.path)
        except DataError as error:
            unread[str(record.path)] = error.message
    for path, message in merged(run, unread).items():
        run.counters.unreadable[path] = message
        yield Warned(f"validation image left out: {message}", run.counters.step)
    left = len(run.val_records)
    if 2 * left <= len(records):
        raise DataError(
            f"{len(records) - left} of {len(records)} validation images cannot be read",
            f"check that the disk is there, then: dino train --resume {run.folder.root}",
        )
