"""Writes the files of a run from which it can be resumed and used: state, last and best weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from dino_core.checkpoints.io import save_checkpoint
from dino_core.engine.clock import RunClock
from dino_core.engine.events import CheckpointSaved
from dino_core.engine.parallel.collectives import all_true, rank
from dino_core.engine.parallel.sharding import local, whole
from dino_core.engine.run_folder import RunFolder
from dino_core.engine.state import Counters, save_state, state_tensors
from dino_core.engine.step import Stepper
from dino_core.errors import CheckpointError, DinoError
from dino_core.metadata import CheckpointMeta
from dino_core.models.dino import Dino

# At most ten minutes of work are lost by a crash, also where steps are slow.
_SAVE_EVERY_S = 600.0


class RunSaver:
    """Writes the training state and the model files of one run.

    Every process calls its methods and rank 0 writes: sharded weights can only be gathered by all
    processes together.

    Attributes:
        sharded: Whether the weights are spread over the processes.
        saved_step: Steps done in the state on disk; -1 where there is none.
    """

    def __init__(
        self, folder: RunFolder, stepper: Stepper, counters: Counters, clock: RunClock
    ) -> None:
        self.sharded = stepper.config.shard == "fsdp"
        self.saved_step = -1
        self._folder, self._stepper = folder, stepper
        self._counters, self._clock = counters, clock
        self._saved_at_s = 0.0
        self._consistent = True

    def begin(self) -> None:
        """Start counting the time to the next checkpoint."""
        self._saved_at_s = self._clock.elapsed_s

    @contextlib.contextmanager
    def weights_change(self) -> Iterator[None]:
        """Weights and counters change inside; until both have, there is nothing worth saving.

        An error inside leaves them inconsistent for good, on purpose: the state on disk is then
        the better one.
        """
        # No `try`: after an exception it must stay False.
        self._consistent = False
        yield
        self._consistent = True

    @property
    def unsaved(self) -> bool:
        """Whether weights and counters belong to one step that the state on disk does not hold."""
        return self._consistent and self.saved_step != self._counters.step

    def due(self, every_steps: int) -> bool:
        """Whether it is time for a checkpoint, and the weights are good enough for one."""
        # Time is read from the shared clock, so all processes answer alike.
        late = (
            self._counters.step - self.saved_step >= every_steps
            or self._clock.elapsed_s - self._saved_at_s > _SAVE_EVERY_S
        )
        return late and self.worth_saving()

    def worth_saving(self) -> bool:
        """Whether a checkpoint of this moment would not replace a better one."""
        return self._counters.sentinel.calm and self.weights_finite()

    def weights_finite(self) -> bool:
        model, device = self._stepper.model, self._stepper.device
        # With sharding each process sees its own part only. Whole models are equal in all
        # processes.
        finite = all(bool(torch.isfinite(local(p)).all()) for p in model.parameters())
        return all_true(finite, device) if self.sharded else finite

    def save(self, meta: CheckpointMeta) -> CheckpointSaved:
        """Write the training state, then last.safetensors.

        Raises:
            DinoError: they cannot be written; the previous files stay as they were.
        """
        self.save_state(meta)
        return self._save_model(self._folder.last, meta, best=False)

    def save_best(self, meta: CheckpointMeta) -> CheckpointSaved:
        """Write best.safetensors. Raises DinoError as `save` does."""
        return self._save_model(self._folder.best, meta, best=True)

    def save_state(self, meta: CheckpointMeta) -> None:
        """Write the training state. Raises DinoError as `save` does."""
        # Evaluation and plots since the last step belong to the working time.
        self._counters.elapsed_s = self._clock.elapsed_s
        stepper = self._stepper
        # With whole models the other processes have nothing to do, but sharded weights are gathered
        # by all of them. Only rank 0 keeps the result, since every process on a machine holding the
        # whole model would need the memory that sharding saves.
        if rank() == 0 or self.sharded:
            tensors = state_tensors(stepper.model, stepper.ema, stepper.optimizer)
            tensors = whole(tensors, keep=rank() == 0)
        if rank() == 0:
            with self._needs_explained():
                save_state(self._folder.state, tensors, self._counters, meta)
        # In every process, since `due` has to give the same answer in all of them.
        self.saved_step, self._saved_at_s = self._counters.step, self._clock.elapsed_s

    def _save_model(self, path: Path, meta: CheckpointMeta, best: bool) -> CheckpointSaved:
        if rank() == 0 or self.sharded:
            state = self._stepper.shipped.state_dict(keep_vars=True)
            tensors = whole(state, keep=rank() == 0)
        if rank() == 0:
            with self._needs_explained():
                save_checkpoint(path, tensors, meta)
        return CheckpointSaved(path, best)

    def whole_model(self) -> Dino:
        """The model that is evaluated and saved, whole in this process."""
        shipped = self._stepper.shipped
        if not self.sharded:
            return shipped
        # A sharded model gathers its weights in each forward pass, but in an evaluation the
        # processes have different numbers of batches. So each gets a whole copy, folded like the
        # live model.
        model = Dino(self._stepper.model.config)
        model.backbone.fold_batch_norm()
        model.load_state_dict(whole(shipped.state_dict(keep_vars=True)))
        return model.to(self._stepper.device).eval()

    @contextlib.contextmanager
    def _needs_explained(self) -> Iterator[None]:
        """Add to a failed write how much space the run takes, and how to continue."""
        try:
            yield
        except CheckpointError as error:
            model = self._stepper.model
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
            # In units of the weights: they and their average are in the state and in the model
            # files, and the state has Adam's two moments besides.
            copies = 2 + 2 + 2 * (self._stepper.ema is not None)
            root = self._folder.root
            raise DinoError(
                f"{error.message}; saving this run takes {copies * weights / 2**20:.0f} MiB in "
                f"{root}",
                f"free some space, then: dino train --resume {root}"
                if self._folder.state.exists()
                else "free some space, or choose another --out",
            ) from error
