"""Training as a generator of events: the caller decides what to show and when to stop.

The recipe follows the paper (ALGORITHM 26), with options around it: bf16, weight averaging, cosine.
`run_events` is a run from its plan to its summary; `_train` is the training itself.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from dino_core.engine.build import build_run
from dino_core.engine.events import Event, RunFinished, RunPlanned, SpeedMeasured, Warned
from dino_core.engine.loggers.base import Opening
from dino_core.engine.loggers.group import LoggerGroup, open_loggers
from dino_core.engine.memory import keep_compiled_kernels, keep_freed_memory
from dino_core.engine.meter import StepMeter
from dino_core.engine.parallel.collectives import barrier, is_distributed, rank, world_size
from dino_core.engine.parallel.interrupts import interrupts_collected
from dino_core.engine.request import RunRequest
from dino_core.engine.run import Run
from dino_core.engine.summary import RunSummary, summarize
from dino_core.engine.trouble import (
    check_not_diverged,
    check_readable,
    gradients_in_memory,
    newly_unreadable,
    roll_back,
)
from dino_core.engine.validation import out_of_patience, validate, validation_due
from dino_core.errors import ConfigError, DinoError

SPEED_STEPS = 5
"""Steps after the first one that measure the speed of a run with a time limit."""


def run_events(request: RunRequest) -> Generator[Event, None, RunSummary]:
    """Train; the first event is the plan, the last one the summary, which is also returned.

    Closing the generator, an interrupt or an unforeseen error saves a checkpoint, from which
    `resume` continues exactly.

    Raises:
        DinoError: a setting, the data or the weights are wrong (before anything is written), or
            the loss does not recover.
    """
    if request.processes not in (None, world_size()):
        raise ConfigError(
            f"{request.processes} training processes asked for, but there are {world_size()}",
            "start them with torchrun, or only plan the run",
        )
    # Both must precede the first large tensor and the first oneDNN kernel.
    keep_freed_memory()
    keep_compiled_kernels()
    run = build_run(request)
    planned = run.planned()
    # The caller can show or refuse the plan here: nothing has been written yet.
    yield planned
    with _interrupts() as run.clock.interrupts:
        run.begin()
        loggers = LoggerGroup()
        try:
            if rank() == 0:
                names = run.dataset.classes.names
                loggers = open_loggers(Opening(planned, run.folder, names, str(run.dataset.root)))
            for event in _train(run):
                yield from _recorded(event, run, loggers)
            summary = _finish(run)
            yield from _recorded(RunFinished(summary), run, loggers)
            return summary
        except DinoError:  # raised on purpose: the state on disk is the one to resume from
            raise
        # KeyboardInterrupt and GeneratorExit (the caller closes the generator) are no Exceptions.
        except BaseException:
            run.save_interrupted()
            raise
        finally:
            loggers.close()


def plan_run(request: RunRequest) -> RunPlanned:
    """What `run_events` would do, with the worst batch tried; nothing is written.

    Raises:
        DinoError: as `run_events` does before anything is written.
    """
    keep_freed_memory()
    return build_run(request).planned(request.processes)


def _interrupts() -> AbstractContextManager[list[int]]:
    """Signals that arrive in one of several processes, which must stop at the same step."""
    return interrupts_collected() if is_distributed() else nullcontext([])


def _recorded(event: Event, run: Run, loggers: LoggerGroup) -> Iterator[Event]:
    """Write an event into the run folder and the loggers; their warnings come before it."""
    # Recorded before the caller sees it: a caller that stops at an event leaves complete files.
    for happening in (*loggers.log(event), event):
        if rank() == 0:
            run.folder.record(happening)
        yield happening


def _train(run: Run) -> Iterator[Event]:
    """All steps, evaluations and checkpoints of a run; the run is between steps at every event."""
    meter = StepMeter(run.stepper.device)
    yield from run.album.labels()
    run.clock.start()  # again: what came before must not shorten a run with a time limit
    yield from _steps(run, meter)
    check_not_diverged(run)
    if meter.steps:
        yield meter.report(run.counters, run.plan, 1.0, run.clock.elapsed_s)
    # The model that ships must be scored, unless the evaluation after the last step has done so.
    if run.val_records and run.evaluated_step != run.counters.step:
        yield from validate(run)
    yield run.save()
    # Without validation images the last weights are also the best ones.
    if not run.folder.best.exists():
        yield run.saver.save_best(run.meta())
    # The features may take much space, and no other run can use them.
    if run.stepper.cache is not None:
        run.stepper.cache.remove()
    yield from run.album.finish(run.counters.step)


def _steps(run: Run, meter: StepMeter) -> Iterator[Event]:
    """Optimizer steps, with what is due between them, until the run has its length."""
    times: list[float] = []
    while not run.stopped_early:
        # Here, between two steps, all processes agree on the time and on stopping.
        run.clock.read()
        if (progress := run.progress()) >= 1.0:
            return
        # Noted before the step, which may begin a new pass.
        epoch, started = run.stream.epoch, time.monotonic()
        trouble = yield from _step(run, progress, meter)
        if trouble:
            yield roll_back(run, trouble)
            # The measurements belong to steps that are done again.
            meter.clear()
            continue
        yield from _measured_speed(run, times, time.monotonic() - started)
        if run.counters.step % run.config.log_every_steps == 0 and meter.steps:
            yield meter.report(run.counters, run.plan, run.progress(), run.clock.elapsed_s)
        if run.stream.epoch > epoch and validation_due(run):
            yield from validate(run)
            run.stopped_early = out_of_patience(run)
        # After the evaluation, so that its result is part of the state that is written.
        if run.saver.due(run.config.checkpoint_every_steps):
            yield run.save()


def _step(run: Run, progress: float, meter: StepMeter) -> Generator[Event, None, str]:
    """One optimizer step. Returns why the run must return to its checkpoint, or ""."""
    started, counters = time.monotonic(), run.counters
    # Mosaics look unlike any real image, so the last part of a run trains without them (YOLOX,
    # arXiv 2107.08430, section 2.1).
    if progress >= run.config.mosaic_until:
        run.stream.stop_mixing()
    batches = run.stream.take(run.accumulate)
    result = yield from gradients_in_memory(run, batches, progress)
    # `result.unreadable` is the same in all processes, as it must be before a collective operation.
    unreadable = newly_unreadable(run, batches) if result.unreadable else {}
    trouble = run.finish_step(result, unreadable)
    # A step without an update has no meaningful loss or speed.
    if result.usable:
        meter.add(result, time.monotonic() - started)
    for message in unreadable.values():
        yield Warned(f"image left out: {message}", counters.step)
    if unreadable or result.empty:
        check_readable(run)
    if result.empty:
        yield Warned(f"step {counters.step}: none of its images can be read", counters.step)
    elif not result.finite:
        yield Warned(f"step {counters.step}: the loss is not finite; left out", counters.step)
    yield from run.album.batches(batches, counters.step - 1)
    return trouble


def _measured_speed(run: Run, times: list[float], seconds: float) -> Iterator[SpeedMeasured]:
    """How far a run with a time limit will get, once its first steps have been measured."""
    if run.plan.minutes is None or len(times) > SPEED_STEPS:
        return
    times.append(seconds)
    if len(times) <= SPEED_STEPS:
        return
    step_s = sum(times[1:]) / SPEED_STEPS  # the first step warms up
    left_s = run.plan.minutes * 60.0 - run.clock.elapsed_s
    rest, done = run.forecast(step_s, left_s), run.counters.step
    steps = done + rest.steps
    epochs = steps / run.plan.steps_per_epoch
    yield SpeedMeasured(done, replace(rest, steps=steps, epochs=epochs))


def _finish(run: Run) -> RunSummary:
    """Write summary.json."""
    summary = summarize(run)
    if rank() == 0:
        run.folder.write_summary(summary)
    barrier()  # in whichever process the caller sees the end, the files are complete
    return summary
