"""Training as a generator of events: whoever iterates decides what to show and when to stop.

The recipe follows the paper (ALGORITHM 26) with options around it: bf16, weight averaging, cosine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from dino_core.config import ModelConfig, TrainConfig
from dino_core.data.batching import Batch
from dino_core.data.records import DatasetIndex
from dino_core.engine.compiling import is_compiler_error
from dino_core.engine.events import (
    EvaluationDone,
    Event,
    RunFinished,
    RunPlanned,
    SpeedMeasured,
    Warned,
)
from dino_core.engine.loggers.group import LoggerGroup, Opening, open_loggers
from dino_core.engine.memory import keep_compiled_kernels, keep_freed_memory
from dino_core.engine.parallel.collectives import (
    barrier,
    gather_texts,
    is_distributed,
    rank,
    world_size,
)
from dino_core.engine.parallel.evaluate import evaluate_together
from dino_core.engine.parallel.interrupts import interrupts_collected
from dino_core.engine.planning.plan import evaluation_due
from dino_core.engine.prepare import prepare
from dino_core.engine.run import Run
from dino_core.engine.run_folder import metric_values
from dino_core.engine.sentinel import BAD_STEPS, MAX_ROLLBACKS
from dino_core.engine.step import OutOfMemoryTogether, StepMeter, StepResult
from dino_core.errors import DataError, DinoError, is_out_of_memory
from dino_core.evaluation.evaluate import EvaluationResult
from dino_core.processing.preprocess import load_image

SPEED_STEPS = 5
"""Steps after the first one by which the speed of a run by the clock is measured."""


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

    Closing the generator (or an interrupt, or an error that nobody foresaw) saves a checkpoint,
    from which `resume` goes on exactly.

    Args:
        config: The recipe; what it leaves open is chosen, and told by the first event.
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
    keep_compiled_kernels()
    run = prepare(config, dataset, out, model, weights, model_config, resume)
    planned = run.planned(memory_kept)
    yield planned
    with interrupts_collected() if is_distributed() else nullcontext(()) as run.interrupts:
        run.begin()
        loggers = LoggerGroup()
        try:
            if rank() == 0:
                names = run.dataset.classes.names
                loggers = open_loggers(Opening(planned, run.folder, names, str(run.dataset.root)))
            for event in _train(run):
                for happening in (*loggers.log(event), event):
                    if rank() == 0:
                        run.folder.record(happening)
                    yield happening
        except DinoError:  # raised on purpose: the state on disk is the one to go on from
            raise
        except BaseException:
            run.save_interrupted()
            raise
        finally:
            loggers.close()


def plan_run(
    config: TrainConfig,
    dataset: DatasetIndex,
    *,
    out: Path,
    model: str = "dino-nano",
    weights: str | Path | None = None,
    model_config: ModelConfig | None = None,
    processes: int | None = None,
) -> RunPlanned:
    """What `fit` would do, worst batch tried and all; nothing is written.

    Arguments and errors are those of `fit`, and `processes`: plan for so many training processes,
    each on a device like this one.
    """
    memory_kept = keep_freed_memory()
    run = prepare(config, dataset, out, model, weights, model_config, False, processes)
    return run.planned(memory_kept, processes)


def _train(run: Run) -> Iterator[Event]:
    """The loop; between any two events the run is at a step's border."""
    meter = StepMeter(run.stepper.device)
    stopped = ""
    evaluated_step = -1
    timed: list[float] = []
    yield from run.album.labels()
    run.session_start = time.monotonic()  # what came before must not shorten a run by the clock
    while not stopped:
        run.tick()
        if (progress := run.progress()) >= 1.0:
            break
        epoch, started = run.stream.epoch, time.monotonic()
        trouble = yield from _step(run, progress, meter)
        if trouble:
            yield _roll_back(run, trouble)
            meter = StepMeter(run.stepper.device)
            continue
        if run.plan.minutes is not None and len(timed) <= SPEED_STEPS:
            timed.append(time.monotonic() - started)
            if len(timed) == 1 + SPEED_STEPS:
                yield _speed(run, sum(timed[1:]) / SPEED_STEPS)
        if run.counters.step % run.config.log_every_steps == 0 and meter.steps:
            yield meter.report(run.counters, run.plan, run.progress(), run.elapsed_s())
        if run.stream.epoch > epoch and _evaluation_due(run):
            evaluated_step = run.counters.step
            yield from _evaluate(run)
            stopped = _out_of_patience(run)
        if run.checkpoint_due():
            yield run.save()
    if run.counters.sentinel.high or not run.weights_finite():
        raise DinoError(
            "the run ended with weights that are not finite or a loss that is far too high",
            f"lower --lr, then: dino train --resume {run.folder.root}",
        )
    if meter.steps:
        yield meter.report(run.counters, run.plan, 1.0, run.elapsed_s())
    if run.val_records and evaluated_step != run.counters.step:
        yield from _evaluate(run)
    yield run.save()
    if not run.folder.best.exists():
        yield run.save_best()
    if run.stepper.cache is not None:
        run.stepper.cache.remove()
    yield from run.album.finish(run.counters.step)
    summary = _summary(run, stopped)
    if rank() == 0:
        run.folder.write_summary(summary)
    barrier()  # whichever process sees the end finds the files complete
    yield RunFinished(run.folder.root, summary)


def _speed(run: Run, step_s: float) -> SpeedMeasured:
    """How far a run by the clock will get, at `step_s` seconds a step from here on."""
    assert run.plan.minutes is not None
    left_s = run.plan.minutes * 60.0 - run.elapsed_s()
    rest, done = run.forecast(step_s, world_size(), left_s), run.counters.step
    steps = done + rest.steps
    return SpeedMeasured(done, replace(rest, steps=steps, epochs=steps / run.plan.steps_per_epoch))


def _step(run: Run, progress: float, meter: StepMeter) -> Generator[Event, None, str]:
    """One optimiser step. Returns why the run must go back to its checkpoint, or ""."""
    started, counters = time.monotonic(), run.counters
    if progress >= run.config.mosaic_until:
        run.stream.stop_mixing()
    batches = run.stream.take(run.accumulate)
    result = yield from _gradients(run, batches, progress)
    unread = _known_to_all(run, batches) if result.unreadable else {}
    news = {path: what for path, what in unread.items() if path not in counters.unreadable}
    trouble = run.finish_step(result, news)
    if result.usable:
        meter.add(result, time.monotonic() - started)
    for what in news.values():
        yield Warned(f"image left out: {what}", counters.step)
    if news or result.empty:
        _check_readable(run)
    if result.empty:
        yield Warned(f"step {counters.step}: none of its images can be read", counters.step)
    elif not result.finite:
        yield Warned(f"step {counters.step}: the loss is not finite; left out", counters.step)
    yield from run.album.batches(batches, counters.step - 1)
    return trouble


def _known_to_all(run: Run, batches: Sequence[Batch]) -> dict[str, str]:
    """Path of each image of this step that a process could not read to what is wrong with it."""
    unread = {u.path: u.message for batch in batches for u in batch.unreadable}
    return _merged(run, unread)


def _merged(run: Run, own: Mapping[str, str]) -> dict[str, str]:
    """What all processes found, the same in all of them."""
    texts = gather_texts(json.dumps(own), run.stepper.device)
    return {path: what for text in texts for path, what in json.loads(text).items()}


def _gradients(
    run: Run, batches: Sequence[Batch], progress: float
) -> Generator[Event, None, StepResult]:
    """The gradients of a step, from its start again in smaller parts where memory is short."""
    while True:
        try:
            return run.stepper.gradients(batches, run.counters.step, progress)
        except Exception as error:
            if is_compiler_error(error):
                raise DinoError(
                    f"torch.compile failed: {str(error).strip().splitlines()[0]}",
                    f"dino train --resume {run.folder.root} --set train.compile=false",
                ) from error
            together = not is_distributed() or isinstance(error, OutOfMemoryTogether)
            if not is_out_of_memory(error):
                raise
        if not (together and run.stepper.halve(batches)):
            run.save_interrupted()
            raise DinoError(
                f"out of memory with {-(-run.config.batch // run.stepper.parts)} images at a time",
                "a smaller --batch or --image-size, or --set train.gradient_checkpointing=true",
            )
        yield Warned(
            f"out of memory: batches of {run.config.batch} go through in {run.stepper.parts} "
            "parts from here on; steps and results stay those of whole batches",
            run.counters.step,
        )


def _roll_back(run: Run, trouble: str) -> Warned:
    """Go back to the last checkpoint with more care. Raises DinoError when that was done enough."""
    if run.counters.sentinel.rollbacks >= MAX_ROLLBACKS:
        raise DinoError(
            f"{trouble}, although the run went back to its checkpoint {MAX_ROLLBACKS} times",
            "train anew with a lower --lr and --dtype fp32, and see what `dino check` finds",
        )
    step = run.counters.step
    run.roll_back()
    rate = run.config.lr * run.stepper.lr_scale
    return Warned(
        f"step {step}: {trouble}; back to step {run.counters.step}, with lr {rate:g} and fp32",
        run.counters.step,
    )


def _check_readable(run: Run) -> None:
    """Raises DataError when so much of the data is unreadable that the run makes no sense."""
    records, counters = run.dataset.splits["train"], run.counters
    failed = sum(str(record.path) in counters.unreadable for record in records)
    if 2 * failed <= len(records) and counters.sentinel.unread < BAD_STEPS:
        return
    example = next(reversed(counters.unreadable.values()))
    raise DataError(
        f"{failed} of {len(records)} training images cannot be read, the last one: {example}",
        f"is the disk there? then: dino train --resume {run.folder.root}",
    )


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
    run.tick()
    started, counters = run.elapsed_s(), run.counters
    try:
        result = _result(run)
    except DataError:  # an image got lost since the start: the others tell as much
        yield from _leave_out_unreadable(run)
        result = _result(run)
    run.metrics = result.metrics
    run.tick()
    seconds = run.elapsed_s() - started
    score = run.metrics.ap if run.metrics.ap is not None else 0.0
    better = counters.best is None or score > counters.best
    best = better or score == counters.best  # of equals the one that trained longer
    saved = [run.save_best()] if best else []  # before anybody hears of it and stops
    if best:
        counters.best, counters.best_step = score, counters.step
    counters.since_best = 0 if better else counters.since_best + 1
    yield EvaluationDone(counters.step, counters.epoch, run.metrics, best, seconds)
    yield from saved
    yield from run.album.evaluated(result, best, counters.step, run.elapsed_s())
    run.tick()  # drawing is process 0's, but all must count with its time
    counters.evaluation_s = run.elapsed_s() - started
    counters.evaluating_s += counters.evaluation_s


def _result(run: Run) -> EvaluationResult:
    try:
        return evaluate_together(
            run.whole_model(),
            run.val_records,
            run.dataset.classes,
            run.start.preprocess,
            batch=max(1, run.config.batch // run.stepper.parts),
            device=run.stepper.device,
            dtype="auto",  # not the training's: `dino eval` shall say the same of the saved model
            interrupted=lambda: bool(run.interrupts),
        )
    except KeyboardInterrupt:
        run.stopping = is_distributed()
        raise


def _leave_out_unreadable(run: Run) -> Iterator[Event]:
    """Find the validation images that cannot be read. Raises DataError when they are half of it."""
    records = run.val_records
    unread: dict[str, str] = {}
    for record in records:
        try:
            load_image(record.path)
        except DataError as error:
            unread[str(record.path)] = error.message
    for path, what in _merged(run, unread).items():
        run.counters.unreadable[path] = what
        yield Warned(f"validation image left out: {what}", run.counters.step)
    if 2 * len(run.val_records) <= len(records):
        raise DataError(
            f"{len(records) - len(run.val_records)} of {len(records)} validation images cannot be "
            "read",
            f"is the disk there? then: dino train --resume {run.folder.root}",
        )


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
        "rollbacks": counters.sentinel.rollbacks,
        "unreadable_images": list(counters.unreadable.values()),
        "stopped_early": stopped or None,
        "best_ap": counters.best,
        "best_step": counters.best_step,
        "best": str(run.folder.best),
        "last": str(run.folder.last),
        "best_per_class": _best_per_class(run),
        "metrics": metric_values(run.metrics) if run.metrics is not None else None,
    }


def _best_per_class(run: Run) -> dict[str, Any] | None:
    """Each class's numbers at the best evaluation, which may be one of an earlier session."""
    if rank() != 0:  # who alone writes the rows
        return None
    for row in reversed(run.folder.rows()):
        if row["event"] == "evaluation" and row["step"] == run.counters.best_step:
            return dict(row["per_class"])
    return None
