"""The state of a training run between two optimizer steps: all that an exact resume needs.

It is one safetensors file, whose metadata hold the counters as JSON. Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dino_core.checkpoints.io import read_tensors, write_tensors
from dino_core.engine.ema import Ema
from dino_core.engine.parallel.sharding import like, load_whole
from dino_core.engine.sentinel import Sentinel
from dino_core.errors import CheckpointError
from dino_core.metadata import METADATA_KEY, CheckpointMeta, from_json, to_json

_COUNTERS_KEY = "counters"


@dataclass
class Counters:
    """Where the run is.

    Attributes:
        step: Optimizer steps done.
        epoch: Completed passes over the training split.
        batch: Batches that each process has consumed of the current pass.
        mixed_batches: As in `BatchStream`: where mixing of images has stopped.
        elapsed_s: Working seconds of all sessions, evaluation included.
        evaluating_s: The part of them that was spent on evaluation.
        evaluation_s: Seconds of the last evaluation; None before the first.
        best: Best AP so far; None before the first evaluation.
        best_step: Optimizer steps done at the best evaluation.
        since_best: Evaluations since the AP last improved.
        skipped: Steps without an update, because of the loss or of unreadable images.
        ema_updates: Updates of the weight average.
        parts: Number of parts in which a batch goes through the network, to save memory.
        unreadable: Path of each image that could not be read to what is wrong with it.
        sentinel: What the watch over the loss remembers.
        processes: Number of training processes.
        planned_processes: Number of processes at the start of the run, for which it was planned.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    mixed_batches: int | None = None
    elapsed_s: float = 0.0
    evaluating_s: float = 0.0
    evaluation_s: float | None = None
    best: float | None = None
    best_step: int | None = None
    since_best: int = 0
    skipped: int = 0
    ema_updates: int = 0
    parts: int = 1
    unreadable: dict[str, str] = field(default_factory=dict)
    sentinel: Sentinel = field(default_factory=Sentinel)
    processes: int = 1
    planned_processes: int = 1

    def continue_with(self, processes: int) -> None:
        """Convert the counts to another number of processes; consumed batches stay consumed.

        Where the numbers do not divide evenly, up to `processes - 1` batches are seen twice.
        """
        # What the old processes have consumed together is divided among the new ones, rounded down:
        # repeating a batch is harmless, skipping one is not.
        self.batch = self.batch * self.processes // processes
        if self.mixed_batches is not None:
            self.mixed_batches = self.mixed_batches * self.processes // processes
        self.processes = processes

    def return_to(self, saved: Counters) -> None:
        """Take over the position of a saved state; what was learned about the run since stays.

        The best score, the unreadable images and the size of the parts belong to the run and not to
        a position in it.
        """
        self.step, self.epoch, self.batch = saved.step, saved.epoch, saved.batch
        self.mixed_batches, self.ema_updates = saved.mixed_batches, saved.ema_updates
        self.sentinel = saved.sentinel.after_rollback(self.sentinel.rollbacks + 1)


def seed_everything(seed: int) -> None:
    """Seed the global generators: torch's (of all devices), numpy's and Python's."""
    torch.manual_seed(seed)
    # NumPy's old interface takes 32 bits only.
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_step(seed: int, step: int, process: int) -> None:
    """Seed the global generators for one step of one process.

    What a step draws, e.g. for stochastic depth, is then a pure function of its position: a resumed
    run needs no generator's state, with any number of processes.
    """
    seed_everything(seed_of(seed, step, process))


def seed_of(*place: int) -> int:
    """A seed of 63 bits for one place in a run, which integers such as seed and step identify."""
    # NumPy refuses negative numbers, so they count as their low 64 bits.
    entropy = [number % 2**64 for number in place]
    words = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def state_tensors(
    model: nn.Module, ema: Ema[Any] | None, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Name in the file to tensor; of sharded tensors, the part that this process holds."""
    # `keep_vars` keeps the parameters' identity, by which `whole` recognizes a tensor with two
    # names.
    tensors = {f"model.{n}": t for n, t in model.state_dict(keep_vars=True).items()}
    if ema is not None:
        tensors |= {f"ema.{n}": t for n, t in ema.model.state_dict(keep_vars=True).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            # By name and not by position as in torch's own state dict, so that the order of the
            # parameter groups may change between versions. Names hold no colon.
            tensors[f"optimizer.{name}:{key}"] = value
    return tensors


def save_state(
    path: Path, tensors: Mapping[str, Tensor], counters: Counters, meta: CheckpointMeta
) -> None:
    """Write the state atomically. Raises CheckpointError when it cannot be written."""
    metadata = {
        METADATA_KEY: to_json(meta),
        _COUNTERS_KEY: json.dumps(dataclasses.asdict(counters)),
    }
    write_tensors(path, tensors, metadata)


@dataclass(frozen=True)
class SavedState:
    """A training state in memory; `restore` puts it into freshly built objects."""

    path: Path
    meta: CheckpointMeta
    counters: Counters
    tensors: dict[str, Tensor]

    def restore(
        self, model: nn.Module, ema: Ema[Any] | None, optimizer: torch.optim.Optimizer
    ) -> None:
        """Load weights, average and optimizer moments; each process takes its part.

        Raises:
            CheckpointError: the state belongs to another model or recipe.
        """
        self._load(model, "model.")
        if ema is not None:
            self._load(ema.model, "ema.")
            ema.updates = self.counters.ema_updates
        named = dict(model.named_parameters())
        # The optimizer may have moments already, where a run returns to an earlier state.
        optimizer.state.clear()
        for key, tensor in self._part("optimizer.").items():
            name, _, slot = key.rpartition(":")
            if name not in named:
                raise CheckpointError(
                    f"{self.path}: optimizer state for an unknown parameter '{name}'"
                )
            parameter = named[name]
            tensor = tensor.to(parameter.device)
            # Moments have the parameter's shape and are sharded like it. The step count is a
            # scalar.
            part = like(tensor, parameter) if tensor.shape == parameter.shape else tensor
            # A copy, so that the steps that follow do not write into the state that was read.
            optimizer.state[parameter][slot] = part.clone()

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: t for k, t in self.tensors.items() if k.startswith(prefix)}

    def _load(self, module: nn.Module, prefix: str) -> None:
        part = self._part(prefix)
        if not part:
            raise CheckpointError(
                f"{self.path}: holds no '{prefix[:-1]}' weights", "resume with the same options"
            )
        try:
            load_whole(module, part)
        except RuntimeError as error:
            raise CheckpointError(f"{self.path}: belongs to another model: {error}") from error


def load_state(path: Path) -> SavedState:
    """Read a training state. Raises CheckpointError when it is missing, damaged or not one."""
    tensors, metadata = read_tensors(path)
    try:
        numbers = json.loads(metadata[_COUNTERS_KEY])
        # Unknown keys raise TypeError here, so a state of another version is refused instead of
        # being half understood.
        sentinel = Sentinel(**numbers.pop("sentinel", {}))
        counters = Counters(**numbers, sentinel=sentinel)
        meta = from_json(metadata[METADATA_KEY], str(path))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a training state ({error!r})") from error
    return SavedState(path, meta, counters, tensors)
