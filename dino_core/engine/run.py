"""A training run: what exists while it lasts, and what it says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dino_core.config import ResolvedConfig, to_dict
from dino_core.data.records import DatasetIndex, ImageRecord
from dino_core.engine.batches import BatchStream
from dino_core.engine.clock import RunClock
from dino_core.engine.events import CheckpointSaved, RunPlanned
from dino_core.engine.parallel.collectives import barrier, rank, world_size
from dino_core.engine.parallel.group import launch_identity
from dino_core.engine.parallel.interrupts import interrupts_deferred
from dino_core.engine.planning.plan import Forecast, Plan, forecast
from dino_core.engine.planning.probe import Trial, trainable
from dino_core.engine.planning.rules import suggested_queries
from dino_core.engine.plots.album import Album
from dino_core.engine.run_folder import RunFolder, RunSettings
from dino_core.engine.saver import RunSaver
from dino_core.engine.start import Start
from dino_core.engine.state import Counters, load_state
from dino_core.engine.step import Stepper, StepResult
from dino_core.evaluation.coco_metrics import Metrics
from dino_core.metadata import CheckpointMeta
from dino_core.process import started_by_torchrun
from dino_core.provenance import Provenance


@dataclass
class Run:
    """Everything that exists during a run; `build.build_run` makes it.

    Attributes:
        dataset: The data.
        folder: Where the files go.
        plan: What the run will do.
        trial: Result of the worst batch; None where it was not tried.
        start: The network, its input and its origin.
        stepper: Does the optimizer steps.
        stream: Gives the training batches.
        counters: Where the run is; saved with the state.
        clock: Working time.
        saver: Writes state and model files.
        album: Draws plots and samples.
        accumulate: Batches per optimizer step in this process.
        resumed_step: Optimizer steps that earlier sessions did.
        metrics: The last evaluation of this session.
        evaluated_step: Optimizer steps done at that evaluation; -1 before the first.
        stopped_early: Why the run stops before its planned end, or "".
    """

    dataset: DatasetIndex
    folder: RunFolder
    plan: Plan
    trial: Trial | None
    start: Start
    stepper: Stepper
    stream: BatchStream
    counters: Counters
    clock: RunClock
    saver: RunSaver
    album: Album
    accumulate: int
    resumed_step: int
    metrics: Metrics | None = None
    evaluated_step: int = -1
    stopped_early: str = ""

    @property
    def config(self) -> ResolvedConfig:
        """The recipe with every choice made."""
        return self.plan.config

    @property
    def val_records(self) -> tuple[ImageRecord, ...]:
        """The validation images, without those that turned out to be unreadable.

        Images none of which has a box are no validation split: every AP would be undefined.
        """
        records = self.dataset.splits.get("val", ())
        if not any(len(record.class_indices) for record in records):
            return ()
        return tuple(r for r in records if str(r.path) not in self.counters.unreadable)

    def progress(self) -> float:
        """Fraction of the run that is done."""
        # Not `val_records`, which looks at every image: this is called at every step.
        # In a run with a time limit the last evaluation must fit in, too.
        reserve = (self.counters.evaluation_s or 0.0) if self.dataset.splits.get("val") else 0.0
        return self.plan.progress(self.counters.step, self.clock.elapsed_s, reserve)

    def forecast(self, step_s: float, left_s: float | None = None) -> Forecast:
        """Expected course of the run where a step takes `step_s`, with `left_s` to its end."""
        return forecast(self.plan, step_s, len(self.val_records), left_s)

    def planned(self, processes: int | None = None) -> RunPlanned:
        """The first event of the run."""
        model = self.start.model
        most_objects = max(len(record.class_indices) for record in self.dataset.records)
        return RunPlanned(
            plan=self.plan,
            out=self.folder.root,
            config=self.config,
            model=model.config,
            preprocess=self.start.preprocess,
            parameters=trainable(model),
            train_images=len(self.dataset.splits["train"]),
            val_images=len(self.val_records),
            most_objects=most_objects,
            suggested_queries=suggested_queries(most_objects, model.config.num_queries),
            device=str(self.stepper.device),
            dtype="bf16" if self.stepper.autocasts else "fp32",
            transfer=self.start.report,
            resumed_step=self.resumed_step,
            trial=self.trial,
            forecast=None if self.trial is None else self.forecast(self.trial.step_s),
            processes=processes or world_size(),
            data_warnings=self.dataset.warnings,
        )

    def begin(self) -> None:
        """Start the clock; create the folder with a state to return to, or tidy up an old one."""
        self.clock.start()
        self.saver.begin()
        # A resumed run may find files of steps after its state, which it will write again.
        if self.saver.saved_step >= 0:
            if rank() == 0:
                self.folder.clear_up(self.resumed_step)
            return
        if rank() == 0:
            self._create_folder()
        # A state before the first step, so that a run can return to it even if its first steps
        # diverge.
        self.saver.save_state(self.meta())
        # Only after the state, which a restarted process needs in order to resume.
        if rank() == 0 and started_by_torchrun():
            self.folder.mark_launch(launch_identity())

    def _create_folder(self) -> None:
        data = {
            "path": str(self.dataset.root),
            "format": self.dataset.format,
            "classes": list(self.dataset.classes.names),
        }
        settings = RunSettings(self.config, self.start.model.config, self.start.preprocess, data)
        set_apart = self.val_records if self.dataset.set_apart is not None else ()
        self.folder.create(settings, [str(record.path) for record in set_apart])
        self.folder.log_data(self.dataset.warnings)

    def meta(self) -> CheckpointMeta:
        """What files that are written now say about themselves."""
        training = {
            "steps": self.counters.step,
            "epochs": self.counters.epoch,
            "images": len(self.dataset.splits["train"]),
            "data": self.dataset.root.name,
            "seconds": round(self.clock.elapsed_s, 1),
            "recipe": to_dict(self.config),
        }
        if self.dataset.set_apart is not None:
            training["set_apart"] = self.dataset.set_apart._asdict()
        network = self.start.model.config
        return CheckpointMeta(
            variant=network.variant,
            model=network,
            preprocess=self.start.preprocess,
            classes=self.dataset.classes,
            training=training,
            metrics=self.metrics.to_dict() if self.metrics is not None else {},
            provenance=Provenance(
                start=self.start.origin,
                run=self.folder.root.resolve().name,
                history=self.start.history,
            ),
        )

    def finish_step(self, result: StepResult, unreadable: Mapping[str, str]) -> str:
        """Update the weights and count the step, as one operation for interrupts.

        Args:
            result: The gradients that were computed.
            unreadable: Path of each image that could not be read to what is wrong with it.

        Returns:
            Why the run must return to its last checkpoint, or "".
        """
        counters, stepper = self.counters, self.stepper
        # Between the update of the weights and that of the counters, an interrupt would save a
        # state that belongs to no step, or lose one.
        with interrupts_deferred(), self.saver.weights_change():
            if result.usable:
                stepper.update()
            else:
                counters.skipped += 1
            # A step that is left out counts as well: learning rate and data move on, or the same
            # bad batch would come again.
            counters.step += 1
            # Taken from the stream only now, not when the batch was loaded: one whose gradients an
            # interrupt cut short must come again after a resume.
            counters.epoch, counters.batch = self.stream.epoch, self.stream.batch
            counters.mixed_batches = self.stream.mixed_batches
            counters.ema_updates = stepper.ema.updates if stepper.ema is not None else 0
            counters.parts = stepper.parts
            counters.unreadable |= unreadable
            return counters.sentinel.see(result.loss, finite=result.finite, empty=result.empty)

    def save(self) -> CheckpointSaved:
        """Write the training state and last.safetensors. Raises DinoError where that fails."""
        return self.saver.save(self.meta())

    def save_interrupted(self) -> None:
        """Save what an interrupt or an error left between two steps, where it is worth keeping."""
        # With sharding, saving is a collective operation.
        if self.saver.sharded and not self.clock.stopping:
            return  # the weights can only be gathered where all processes stop together
        # An exception from inside of a step leaves weights and counters apart, and a diverging run
        # must not overwrite a good state.
        if self.saver.unsaved and self.saver.worth_saving():
            with interrupts_deferred():
                self.save()
        if self.clock.stopping:
            # As soon as one process has left, torchrun ends the others: rank 0 must have written.
            barrier()

    def roll_back(self) -> None:
        """Return to the saved state, continue from there more carefully, and save that."""
        # Read from the disk by every process, which is simpler than sending it, and is the state
        # that a resume would find.
        saved = load_state(self.folder.state)
        saved.counters.continue_with(world_size())
        with self.saver.weights_change():
            saved.restore(self.stepper.model, self.stepper.ema, self.stepper.optimizer)
            self.counters.return_to(saved.counters)
            place = saved.counters
            self.stream.go_to(place.epoch, place.batch, place.mixed_batches)
            self.apply_care()
        # The tables must not show twice the steps that are done again.
        if rank() == 0:
            self.folder.forget_after(self.counters.step)
        # The lower learning rate must survive a crash, or a restart would diverge in the same way.
        self.saver.save_state(self.meta())

    def apply_care(self) -> None:
        """Give the stepper what earlier trouble taught: learning rate, data type, size of parts."""
        sentinel = self.counters.sentinel
        self.stepper.lr_scale = sentinel.lr_factor
        if sentinel.fp32:
            self.stepper.dtype = torch.float32
        self.stepper.parts = self.counters.parts
