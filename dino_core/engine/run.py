"""A training run: what is alive while it goes on, and how it is saved."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dino_core.checkpoints.io import save_checkpoint
from dino_core.config import (
    ResolvedConfig,
    to_dict,
)
from dino_core.data.records import DatasetIndex, ImageRecord
from dino_core.engine.batches import BatchStream
from dino_core.engine.ema import Ema
from dino_core.engine.events import CheckpointSaved, RunPlanned
from dino_core.engine.parallel.collectives import (
    all_true,
    barrier,
    rank,
    sums,
    world_size,
)
from dino_core.engine.parallel.group import launch_identity
from dino_core.engine.parallel.interrupts import interrupts_deferred
from dino_core.engine.parallel.sharding import local, whole
from dino_core.engine.planning.plan import Forecast, Plan, forecast
from dino_core.engine.planning.probe import Trial
from dino_core.engine.plots.album import Album
from dino_core.engine.run_folder import RunFolder, RunSettings, metric_values
from dino_core.engine.setup import (
    Start,
)
from dino_core.engine.state import (
    Counters,
    load_state,
    save_state,
    state_tensors,
)
from dino_core.engine.step import Stepper, StepResult
from dino_core.errors import CheckpointError, DinoError
from dino_core.metadata import CheckpointMeta
from dino_core.models.dino import Dino
from dino_core.process import started_by_torchrun

_SAVE_EVERY_S = 600.0


@dataclass
class Run:
    """Everything alive during a run."""

    dataset: DatasetIndex
    folder: RunFolder
    plan: Plan
    trial: Trial | None
    start: Start
    stepper: Stepper
    ema: Ema[Dino] | None
    stream: BatchStream
    counters: Counters
    album: Album
    resumed_step: int
    accumulate: int
    interrupts: Sequence[int] = ()  # signals that wait for the step's end; several processes only
    stopping: bool = False  # all processes, at this step
    session_start: float = 0.0
    earlier_s: float = 0.0
    clock_s: float = 0.0
    metrics: Any = None
    saved_step: int = -1
    saved_at: float = 0.0
    updating: bool = False  # weights and counters are not of one step at this moment

    @property
    def config(self) -> ResolvedConfig:
        """The recipe, every choice made."""
        return self.plan.config

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
        """The validation images, without those that turned out to be unreadable."""
        records = self.dataset.splits.get("val", ())
        return tuple(r for r in records if str(r.path) not in self.counters.unreadable)

    @property
    def sharded(self) -> bool:
        """Whether no process has whole weights."""
        return self.config.shard == "fsdp"

    def tick(self) -> None:
        """Read the clock: process 0's for all, so that they decide the same about time.

        Raises: KeyboardInterrupt in every process where one was asked to stop.
        """
        now = self.earlier_s + time.monotonic() - self.session_start
        own = (float(bool(self.interrupts)), now if rank() == 0 else 0.0)
        stops, self.clock_s = sums(own, self.stepper.device)
        if stops:
            self.stopping = True
            raise KeyboardInterrupt

    def elapsed_s(self) -> float:
        """Seconds of work in all sessions, when the clock was read last."""
        return self.clock_s

    def progress(self) -> float:
        # Not `val_records`, which asks after every image: this is called at every step.
        reserve = (self.counters.evaluation_s or 0.0) if self.dataset.splits.get("val") else 0.0
        return self.plan.progress(self.counters.step, self.elapsed_s(), reserve)

    def planned(self, memory_kept: bool, processes: int | None = None) -> RunPlanned:
        trainable = (p.numel() for p in self.model.parameters() if p.requires_grad)
        processes = processes or world_size()
        return RunPlanned(
            plan=self.plan,
            out=self.folder.root,
            config=self.config,
            model=self.model.config,
            preprocess=self.start.preprocess,
            parameters=sum(trainable),
            train_images=len(self.dataset.splits["train"]),
            val_images=len(self.val_records),
            most_objects=max(
                len(record.class_indices)
                for records in self.dataset.splits.values()
                for record in records
            ),
            device=str(self.stepper.device),
            dtype="bf16" if self.stepper.autocasts else "fp32",
            transfer=self.start.report,
            resumed_step=self.resumed_step,
            memory_kept=memory_kept,
            trial=self.trial,
            forecast=None if self.trial is None else self.forecast(self.trial.step_s, processes),
            processes=processes,
        )

    def forecast(self, step_s: float, processes: int, left_s: float | None = None) -> Forecast:
        """How the run will go where a step takes `step_s`; by the clock, with `left_s` to go."""
        return forecast(self.plan, step_s, len(self.val_records), processes, left_s)

    def begin(self) -> None:
        """Start the clock, and make the folder with a state to come back to, or clear it up."""
        self.session_start = time.monotonic()
        self.saved_at = self.clock_s
        if self.saved_step >= 0:
            if rank() == 0:
                self.folder.clear_up(self.resumed_step)
            return
        if rank() == 0:
            self._create_folder()
        self._save_state()
        if rank() == 0 and started_by_torchrun():
            self.folder.mark_launch(launch_identity())

    def _create_folder(self) -> None:
        data = {
            "path": str(self.dataset.root),
            "format": self.dataset.format,
            "classes": list(self.dataset.classes.names),
        }
        settings = RunSettings(self.config, self.model.config, self.start.preprocess, data)
        set_apart = self.val_records if self.dataset.set_apart is not None else ()
        self.folder.create(settings, [str(record.path) for record in set_apart])

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
        if self.dataset.set_apart is not None:
            training["set_apart"] = self.dataset.set_apart._asdict()
        return CheckpointMeta(
            variant=self.model.config.variant,
            model=self.model.config,
            preprocess=self.start.preprocess,
            classes=self.dataset.classes,
            training=training,
            metrics=metric_values(self.metrics) if self.metrics is not None else {},
            provenance={
                "start": self.start.origin,
                "run": self.folder.root.resolve().name,
                "history": list(self.start.history),
            },
        )

    def finish_step(self, result: StepResult, unreadable: Mapping[str, str]) -> str:
        """Update the weights, count the step, and remember the place for an interrupt.

        Args:
            result: What the step's gradients are like.
            unreadable: Path of each image that could not be read to what is wrong with it.

        Returns: Why the run must go back to its checkpoint, or "".
        """
        counters = self.counters
        with interrupts_deferred():
            self.updating = True
            if result.usable:
                self.stepper.update()
            else:
                counters.skipped += 1
            counters.step += 1
            counters.epoch, counters.batch = self.stream.epoch, self.stream.batch
            counters.mixed_batches = self.stream.mixed_batches
            counters.ema_updates = self.ema.updates if self.ema is not None else 0
            counters.parts = self.stepper.parts
            counters.unreadable |= unreadable
            trouble = counters.sentinel.see(result)
            self.updating = False
        return trouble

    def save(self) -> CheckpointSaved:
        """Write the training state, then last.safetensors.

        Raises: DinoError when they cannot be written; the files that were there stay.
        """
        self._save_state()
        self._save_model(self.folder.last)
        return CheckpointSaved(self.folder.last, best=False)

    def save_best(self) -> CheckpointSaved:
        self._save_model(self.folder.best)
        return CheckpointSaved(self.folder.best, best=True)

    def _save_state(self) -> None:
        self.counters.elapsed_s = self.elapsed_s()
        if rank() == 0 or self.sharded:
            tensors = state_tensors(self.model, self.ema, self.stepper.optimizer)
            tensors = whole(tensors, keep=rank() == 0)
        if rank() == 0:
            with self._telling_what_is_needed():
                save_state(self.folder.state, tensors, self.counters, self.meta())
        self.saved_step, self.saved_at = self.counters.step, self.clock_s

    def _save_model(self, path: Path) -> None:
        if rank() == 0 or self.sharded:
            tensors = whole(self.shipped.state_dict(keep_vars=True), keep=rank() == 0)
        if rank() == 0:
            with self._telling_what_is_needed():
                save_checkpoint(path, tensors, self.meta())

    def whole_model(self) -> Dino:
        """The model that is shipped, whole in this process."""
        if not self.sharded:
            return self.shipped
        model = Dino(self.model.config)
        model.backbone.fold_batch_norm()
        model.load_state_dict(whole(self.shipped.state_dict(keep_vars=True)))
        return model.to(self.stepper.device).eval()

    @contextlib.contextmanager
    def _telling_what_is_needed(self) -> Iterator[None]:
        """A file that cannot be written becomes an error with the folder's needs and the remedy."""
        try:
            yield
        except CheckpointError as error:
            weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
            copies = 2 + 2 + 2 * (self.ema is not None)  # weights, Adam's moments, average; a model
            resumable = self.folder.state.exists()
            raise DinoError(
                f"{error.message}; saving this run takes {copies * weights / 2**20:.0f} MiB in "
                f"{self.folder.root}",
                f"free some space, then: dino train --resume {self.folder.root}"
                if resumable
                else "free some space, or choose another --out",
            ) from error

    def save_interrupted(self) -> None:
        """Save what an interrupt or an error left at a step's border, where it is worth keeping.

        Sharded weights are put together by all processes: only where all of them stop.
        """
        if self.sharded and not self.stopping:
            return
        if not self.updating and self.saved_step != self.counters.step and self.worth_saving():
            with interrupts_deferred():
                self.save()
        if self.stopping:
            barrier()  # torchrun ends the others once one has left, process 0 in its writing too

    def worth_saving(self) -> bool:
        """Whether a checkpoint of now would not take the place of a better one."""
        return self.counters.sentinel.calm and self.weights_finite()

    def weights_finite(self) -> bool:
        finite = all(bool(torch.isfinite(local(p)).all()) for p in self.model.parameters())
        return all_true(finite, self.stepper.device) if self.sharded else finite

    def checkpoint_due(self) -> bool:
        due = (
            self.counters.step - self.saved_step >= self.config.checkpoint_every_steps
            or self.clock_s - self.saved_at > _SAVE_EVERY_S
        )
        return due and self.worth_saving()

    def roll_back(self) -> None:
        """Return to the saved state, from there on more careful; that is saved in its turn."""
        saved = load_state(self.folder.state)
        saved.counters.go_on_with(world_size())
        self.updating = True
        saved.restore(self.model, self.ema, self.stepper.optimizer)
        place, now = saved.counters, self.counters
        self.counters = replace(
            now,
            step=place.step,
            epoch=place.epoch,
            batch=place.batch,
            mixed_batches=place.mixed_batches,
            ema_updates=place.ema_updates,
            sentinel=place.sentinel.after_rollback(now.sentinel.rollbacks + 1),
        )
        self.stream.go_to(place.epoch, place.batch, place.mixed_batches)
        self.take_care()
        self.updating = False
        if rank() == 0:
            self.folder.forget_after(place.step)
        self._save_state()

    def take_care(self) -> None:
        """Set the stepper to what earlier trouble taught: rate, arithmetic, size of the parts."""
        sentinel = self.counters.sentinel
        self.stepper.lr_scale = sentinel.lr_factor
        if sentinel.fp32:
            self.stepper.dtype = torch.float32
        self.stepper.parts = self.counters.parts
