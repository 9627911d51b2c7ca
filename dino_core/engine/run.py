"""A training run: what is alive while it goes on, how it is built, and how it is saved."""

from __future__ import annotations

import time
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
from dino_core.engine.events import (
    CheckpointSaved,
    RunPlanned,
)
from dino_core.engine.optimizer import build_optimizer
from dino_core.engine.plan import Plan, plan
from dino_core.engine.run_folder import RunFolder, RunSettings, metric_values
from dino_core.engine.setup import Start, choose_dtype, freeze, start_from
from dino_core.engine.state import (
    Counters,
    RngState,
    SavedState,
    load_state,
    save_state,
    seed_everything,
)
from dino_core.engine.step import Stepper
from dino_core.errors import ConfigError
from dino_core.inference.torch_runtime import resolve_device
from dino_core.metadata import CheckpointMeta
from dino_core.models.dino import Dino

_SAVE_EVERY_S = 600.0


@dataclass
class Run:
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
        """Count a step, and remember this place, which an interrupt in the next one returns to."""
        self.stepper.updating = True
        self.counters.step += 1
        self.counters.epoch, self.counters.batch = self.stream.epoch, self.stream.batch
        self.counters.ema_updates = self.ema.updates if self.ema is not None else 0
        self.rng = RngState.now()
        self.stepper.updating = False

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


def prepare(
    config: TrainConfig,
    dataset: DatasetIndex,
    out: Path,
    model: str,
    weights: str | Path | None,
    model_config: ModelConfig | None,
    resume: bool,
) -> Run:
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
    device, seed = resolve_device(config.device), config.seed
    seed_everything(seed)
    if saved is not None:
        start = Start(Dino(saved.meta.model), saved.meta.preprocess, None, "resume")
    else:
        start = start_from(model, weights, dataset.classes, config.image_size, model_config)
    start.model.backbone.fold_batch_norm()  # two passes over every map less
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
    return Run(
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
