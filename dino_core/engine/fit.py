"""Training as a generator of events: whoever iterates decides what to show and when to stop.

The recipe follows the paper (ALGORITHM 26) with options around it: bf16, weight averaging, cosine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dino_core.config import ModelConfig, TrainConfig
from dino_core.data.records import DatasetIndex
from dino_core.engine.distributed import rank
from dino_core.engine.evaluate import evaluate_model
from dino_core.engine.events import (
    EvaluationDone,
    Event,
    RunFinished,
    Warned,
)
from dino_core.engine.memory import keep_freed_memory
from dino_core.engine.plan import evaluation_due
from dino_core.engine.run import Run, prepare
from dino_core.engine.run_folder import metric_values, write_summary
from dino_core.engine.step import StepMeter
from dino_core.errors import DinoError

_BAD_STEPS_IN_A_ROW = 10


def fit(
    config: TrainConfig,
    dataset: DatasetIndex,
    *,
    out: Path,
    model: str = "dino-nano",
    weights: str | Path | None = None,
    model_config: ModelConfig | None = None,
    resume: bool = False,
) -> Iterator[Event]:
    """Train a model on `dataset`; the first event is the plan, the last one the summary.

    Closing the generator (or an interrupt) saves a checkpoint, from which `resume` goes on exactly.

    Args:
        config: The recipe.
        dataset: Splits "train" and, for evaluation, "val".
        out: The run's folder: made after the first event; on resume the folder of that run.
        model: A variant's name or a model file.
        weights: Starting weights: a model file, "none" (random), None for the model's own.
        model_config: Replaces the network's settings, except for the class count.
        resume: Go on from the state in `out`; `model` and `weights` are then ignored.

    Raises:
        DinoError: a setting, the data or the weights are wrong (before anything is written), or
            the loss stays infinite.
    """
    memory_kept = keep_freed_memory()
    run = prepare(config, dataset, out, model, weights, model_config, resume)
    yield run.planned(memory_kept)
    run.open_folder()
    interrupted = False
    try:
        for event in _train(run):
            if rank() == 0:
                run.folder.record(event)
            yield event
    except (GeneratorExit, KeyboardInterrupt):
        interrupted = True
        raise
    finally:
        if interrupted:
            run.save_interrupted()


def _train(run: Run) -> Iterator[Event]:
    """The loop; between any two events the run is at a step's border."""
    run.session_start = run.saved_at = time.monotonic()
    meter = StepMeter(run.stepper.device)
    bad_in_a_row = 0
    stopped = ""
    evaluated_step = -1
    while (progress := run.progress()) < 1.0 and not stopped:
        started, epoch = time.monotonic(), run.stream.epoch
        batches = run.stream.take(run.config.accumulate)
        result = run.stepper.step(batches, run.counters.step, progress)
        run.mark_step()
        if result.finite:
            bad_in_a_row = 0
            meter.add(result, sum(len(b.targets) for b in batches), time.monotonic() - started)
        else:
            run.counters.skipped += 1
            bad_in_a_row += 1
            yield Warned(f"step {run.counters.step}: the loss is not finite; left out")
            if bad_in_a_row >= _BAD_STEPS_IN_A_ROW:
                raise DinoError(
                    f"the loss was not finite in {bad_in_a_row} steps in a row",
                    "lower --lr, or --dtype fp32; the last good checkpoint is in the run's folder",
                )
        if run.counters.step % run.config.log_every_steps == 0 and meter.steps:
            yield meter.report(run.counters, run.plan, run.progress(), run.elapsed_s())
        if run.stream.epoch > epoch and _evaluation_due(run):
            evaluated_step = run.counters.step
            yield from _evaluate(run)
            stopped = _out_of_patience(run)
        if run.checkpoint_due():
            yield run.save()
    if meter.steps:
        yield meter.report(run.counters, run.plan, 1.0, run.elapsed_s())
    if run.val_records and evaluated_step != run.counters.step:
        yield from _evaluate(run)
    yield run.save()
    if not run.folder.best.exists():
        yield run.save_best()
    summary = _summary(run, stopped)
    if rank() == 0:
        write_summary(run.folder, summary)
    yield RunFinished(run.folder.root, summary)


def _evaluation_due(run: Run) -> bool:
    counters = run.counters
    if not run.val_records or counters.epoch % run.config.eval_every_epochs:
        return False
    return evaluation_due(
        run.elapsed_s(),
        counters.evaluating_s,
        counters.evaluation_s,
        len(run.val_records) / len(run.dataset.splits["train"]) / max(1, counters.epoch),
    )


def _evaluate(run: Run) -> Iterator[Event]:
    """Score the shipped model; keep it where it is the best so far."""
    started, counters = time.monotonic(), run.counters
    run.metrics = evaluate_model(
        run.shipped,
        run.val_records,
        run.dataset.classes,
        run.start.preprocess,
        batch=run.config.batch,
        device=str(run.stepper.device),
        dtype="auto",  # not the training's: `dino eval` shall say the same of the saved model
    )
    run.rng.restore()
    counters.evaluation_s = time.monotonic() - started
    counters.evaluating_s += counters.evaluation_s
    score = run.metrics.ap if run.metrics.ap is not None else 0.0
    better = counters.best is None or score > counters.best
    best = better or score == counters.best  # of equals the one that trained longer
    counters.since_best = 0 if better else counters.since_best + 1
    if best:
        counters.best, counters.best_step = score, counters.step
    yield EvaluationDone(counters.step, counters.epoch, run.metrics, best, counters.evaluation_s)
    if best:
        yield run.save_best()


def _out_of_patience(run: Run) -> str:
    patience = run.config.patience
    if patience is None or run.counters.since_best < patience:
        return ""
    return f"no better AP in {patience} evaluations"


def _summary(run: Run, stopped: str) -> dict[str, Any]:
    counters = run.counters
    return {
        "schema": 1,
        "model": run.model.config.variant,
        "start": run.start.origin,
        "data": str(run.dataset.root),
        "train_images": len(run.dataset.splits["train"]),
        "val_images": len(run.val_records),
        "steps": counters.step,
        "epochs": counters.epoch,
        "seconds": round(run.elapsed_s(), 1),
        "seconds_evaluating": round(counters.evaluating_s, 1),
        "skipped_steps": counters.skipped,
        "stopped_early": stopped or None,
        "best_ap": counters.best,
        "best_step": counters.best_step,
        "best": str(run.folder.best),
        "last": str(run.folder.last),
        "metrics": metric_values(run.metrics) if run.metrics is not None else None,
    }
