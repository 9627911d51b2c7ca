"""Training as a generator of events: whoever iterates decides what to show and when to stop.

The recipe follows the paper (ALGORITHM 26) with options around it: bf16, weight averaging, cosine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dino_core.checkpoints.io import save_checkpoint
from dino_core.config import ModelConfig, TrainConfig, to_dict
from dino_core.data.batching import Loader, make_loader
from dino_core.data.dataset import DetectionDataset
from dino_core.data.records import DatasetIndex, ImageRecord
from dino_core.data.transforms import build_transform
from dino_core.engine.batches import BatchStream
from dino_core.engine.distributed import rank, world_size
from dino_core.engine.ema import Ema
from dino_core.engine.evaluate import evaluate_model
from dino_core.engine.events import (
    CheckpointSaved,
    EvaluationDone,
    Event,
    RunFinished,
    RunPlanned,
    Warned,
)
from dino_core.engine.memory import keep_freed_memory
from dino_core.engine.optimizer import build_optimizer
from dino_core.engine.plan import Plan, evaluation_due, plan
from dino_core.engine.run_folder import RunFolder, RunSettings, metric_values, write_summary
from dino_core.engine.setup import Start, choose_device, choose_dtype, freeze, start_from
from dino_core.engine.state import (
    Counters,
    RngState,
    SavedState,
    load_state,
    save_state,
    seed_everything,
)
from dino_core.engine.step import StepMeter, Stepper
from dino_core.errors import ConfigError, DinoError
from dino_core.metadata import CheckpointMeta
from dino_core.models.dino import Dino

_SAVE_EVERY_S = 600.0
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
    run = _prepare(config, dataset, out, model, weights, model_config, resume)
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


@dataclass
class _Run:
    """Everything alive during a run."""

    config: TrainConfig
    dataset: DatasetIndex
    folder: RunFolder
    plan: Plan
    start: Start
    stepper: Stepper
    ema: Ema[Dino] | None
    stream: BatchStream
    counters: Counters
    rng: RngState
    resumed_step: int
    session_start: float = 0.0
    earlier_s: float = 0.0
    metrics: Any = None
    saved_step: int = -1
    saved_at: float = 0.0

    @property
    def model(self) -> Dino:
        """The live model."""
        return self.start.model

    @property
    def shipped(self) -> Dino:
        """The model that is evaluated and saved: the average, or the live one without it."""
        return self.ema.model if self.ema is not None else self.model

    @property
    def val_records(self) -> tuple[ImageRecord, ...]:
        return tuple(self.dataset.splits.get("val", ()))

    def elapsed_s(self) -> float:
        return self.earlier_s + time.monotonic() - self.session_start

    def progress(self) -> float:
        reserve = (self.counters.evaluation_s or 0.0) if self.val_records else 0.0
        return self.plan.progress(self.counters.step, self.elapsed_s(), reserve)

    def planned(self, memory_kept: bool) -> RunPlanned:
        trainable = (p.numel() for p in self.model.parameters() if p.requires_grad)
        return RunPlanned(
            plan=self.plan,
            out=self.folder.root,
            config=self.config,
            model=self.model.config,
            preprocess=self.start.preprocess,
            parameters=sum(trainable),
            train_images=len(self.dataset.splits["train"]),
            val_images=len(self.val_records),
            device=str(self.stepper.device),
            dtype="bf16" if self.stepper.autocasts else "fp32",
            transfer=self.start.report,
            resumed_step=self.resumed_step,
            memory_kept=memory_kept,
        )

    def open_folder(self) -> None:
        if rank() != 0:
            return
        if self.resumed_step:
            self.folder.forget_after(self.resumed_step)
            return
        data = {
            "path": str(self.dataset.root),
            "format": self.dataset.format,
            "classes": list(self.dataset.classes.names),
        }
        settings = RunSettings(self.config, self.model.config, self.start.preprocess, data)
        self.folder.create(settings)

    def meta(self) -> CheckpointMeta:
        """What the files of this moment say about themselves."""
        training = {
            "steps": self.counters.step,
            "epochs": self.counters.epoch,
            "images": len(self.dataset.splits["train"]),
            "data": self.dataset.root.name,
            "seconds": round(self.elapsed_s(), 1),
            "recipe": to_dict(self.config),
        }
        return CheckpointMeta(
            variant=self.model.config.variant,
            model=self.model.config,
            preprocess=self.start.preprocess,
            classes=self.dataset.classes,
            training=training,
            metrics=metric_values(self.metrics) if self.metrics is not None else {},
            provenance={"start": self.start.origin},
        )

    def mark_step(self) -> None:
        """Remember the place between two steps, which an interrupt in the next one returns to."""
        self.counters.epoch, self.counters.batch = self.stream.epoch, self.stream.batch
        self.counters.ema_updates = self.ema.updates if self.ema is not None else 0
        self.rng = RngState.now()

    def save(self) -> CheckpointSaved:
        """Write the training state, then last.safetensors."""
        self.counters.elapsed_s = self.elapsed_s()
        if rank() == 0:
            optimizer, meta = self.stepper.optimizer, self.meta()
            self.folder.state.parent.mkdir(parents=True, exist_ok=True)
            save_state(
                self.folder.state, self.model, self.ema, optimizer, self.counters, self.rng, meta
            )
            save_checkpoint(self.folder.last, self.shipped.state_dict(), meta)
        self.saved_step, self.saved_at = self.counters.step, time.monotonic()
        return CheckpointSaved(self.folder.last, best=False)

    def save_best(self) -> CheckpointSaved:
        if rank() == 0:
            save_checkpoint(self.folder.best, self.shipped.state_dict(), self.meta())
        return CheckpointSaved(self.folder.best, best=True)

    def save_interrupted(self) -> None:
        """Save at an interrupt, unless it fell into the update of the weights itself."""
        if not self.stepper.updating and self.saved_step != self.counters.step:
            self.save()

    def checkpoint_due(self) -> bool:
        done = self.counters.step - max(self.saved_step, self.resumed_step)
        return (
            done >= self.config.checkpoint_every_steps
            or time.monotonic() - self.saved_at > _SAVE_EVERY_S
        )


def _prepare(
    config: TrainConfig,
    dataset: DatasetIndex,
    out: Path,
    model: str,
    weights: str | Path | None,
    model_config: ModelConfig | None,
    resume: bool,
) -> _Run:
    """Check everything and build everything; nothing is written."""
    folder = RunFolder(out)
    saved: SavedState | None = None
    if resume:
        folder.read_settings()
        saved = load_state(folder.state)
        if saved.meta.classes != dataset.classes:
            raise ConfigError(f"{out}: the run was started on data with other classes")
    elif rank() == 0:
        folder.check_new()
    the_plan = plan(config, dataset, world_size())
    device, seed = choose_device(config.device), config.seed
    seed_everything(seed)
    if saved is not None:
        start = Start(Dino(saved.meta.model), saved.meta.preprocess, None, "resume")
    else:
        start = start_from(model, weights, dataset.classes, config.image_size, model_config)
    network = start.model.to(device)
    network.set_gradient_checkpointing(config.gradient_checkpointing)
    freeze(network, config.freeze)
    seed_everything(seed + rank())
    ema = Ema(network, config.ema_decay) if config.ema else None
    optimizer = build_optimizer(network, config)
    counters = Counters()
    if saved is not None:
        counters = saved.counters
        saved.restore(network, ema, optimizer)
        saved.rng.restore()
        start = replace(start, origin=str(saved.meta.provenance.get("start", "resume")))
    stepper = Stepper(config, network, ema, optimizer, device, choose_dtype(config, device))
    stream = BatchStream(_loader(config, dataset, start, device), counters.epoch, counters.batch)
    return _Run(
        config=config,
        dataset=dataset,
        folder=folder,
        plan=the_plan,
        start=start,
        stepper=stepper,
        ema=ema,
        stream=stream,
        counters=counters,
        rng=RngState.now(),
        resumed_step=counters.step,
        earlier_s=counters.elapsed_s,
    )


def _loader(
    config: TrainConfig, dataset: DatasetIndex, start: Start, device: torch.device
) -> Loader:
    preprocess = start.preprocess
    transform = build_transform(config.augment, preprocess)
    images = DetectionDataset(dataset.splits["train"], preprocess, transform, config.seed)
    return make_loader(
        images,
        config.batch,
        seed=config.seed,
        drop_last=True,
        workers=config.workers,
        pin_memory=device.type == "cuda",
        rank=rank(),
        world_size=world_size(),
    )


def _train(run: _Run) -> Iterator[Event]:
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
        run.counters.step += 1
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


def _evaluation_due(run: _Run) -> bool:
    counters = run.counters
    if not run.val_records or counters.epoch % run.config.eval_every_epochs:
        return False
    return evaluation_due(
        run.elapsed_s(),
        counters.evaluating_s,
        counters.evaluation_s,
        len(run.val_records) / len(run.dataset.splits["train"]) / max(1, counters.epoch),
    )


def _evaluate(run: _Run) -> Iterator[Event]:
    """Score the shipped model; keep it where it is the best so far."""
    started, counters = time.monotonic(), run.counters
    run.metrics = evaluate_model(
        run.shipped,
        run.val_records,
        run.dataset.classes,
        run.start.preprocess,
        batch=run.config.batch,
        device=str(run.stepper.device),
        dtype="bf16" if run.stepper.autocasts else "fp32",
    )
    run.rng.restore()
    counters.evaluation_s = time.monotonic() - started
    counters.evaluating_s += counters.evaluation_s
    score = run.metrics.ap if run.metrics.ap is not None else 0.0
    best = counters.best is None or score >= counters.best  # of equals the longer trained
    counters.since_best = 0 if best else counters.since_best + 1
    if best:
        counters.best, counters.best_step = score, counters.step
    yield EvaluationDone(counters.step, counters.epoch, run.metrics, best, counters.evaluation_s)
    if best:
        yield run.save_best()


def _out_of_patience(run: _Run) -> str:
    patience = run.config.patience
    if patience is None or run.counters.since_best < patience:
        return ""
    return f"no better AP in {patience} evaluations"


def _summary(run: _Run, stopped: str) -> dict[str, Any]:
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
