"""The state of a training run between two optimiser steps: all that an exact resume needs.

It lives in one safetensors file (tensors) whose metadata hold the counters as JSON; never a pickle.
"""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dino_core.checkpoints.io import read_tensors, write_tensors
from dino_core.engine.ema import Ema
from dino_core.engine.sentinel import Sentinel
from dino_core.errors import CheckpointError
from dino_core.metadata import METADATA_KEY, CheckpointMeta, from_json, to_json

_COUNTERS_KEY, _RNG_KEY = "counters", "rng"


@dataclass
class Counters:
    """Where the run is.

    Attributes:
        step: Optimiser steps done.
        epoch: Passes over the training split that are complete.
        batch: Batches of the present pass that are consumed.
        mixed_batches: As in `BatchStream`: where mixing of images has stopped.
        elapsed_s: Seconds of work in all sessions, evaluation included.
        evaluating_s: Seconds of it spent evaluating.
        evaluation_s: Seconds of the last evaluation; None before the first.
        best: Best validation score so far.
        best_step: Its step.
        since_best: Evaluations since then.
        skipped: Steps left out in all because of a loss that was not finite, or of no image.
        ema_updates: Updates of the average.
        parts: Each batch goes through the network in so many parts, for want of memory.
        unreadable: Path of each image that could not be read to what is wrong with it.
        sentinel: What the watch over the loss remembers.
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


@dataclass(frozen=True)
class RngState:
    """The global random generators (torch, CUDA, numpy, Python)."""

    torch_cpu: Tensor
    torch_cuda: Tensor | None
    numpy: dict[str, Any]
    python: tuple[Any, ...]

    @classmethod
    def now(cls) -> RngState:
        in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        cuda = torch.cuda.get_rng_state() if in_use else None
        numpy_state = np.random.get_state(legacy=False)
        assert isinstance(numpy_state, dict)
        return cls(torch.get_rng_state(), cuda, numpy_state, random.getstate())

    def restore(self) -> None:
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.torch_cuda)
        np.random.set_state(self.numpy)
        random.setstate(self.python)


def seed_everything(seed: int) -> None:
    """Seed the global generators, which initialise weights and may serve augmentations."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def save_state(
    path: Path,
    model: nn.Module,
    ema: Ema[Any] | None,
    optimizer: torch.optim.Optimizer,
    counters: Counters,
    rng: RngState,
    meta: CheckpointMeta,
) -> None:
    """Write the state atomically. Raises CheckpointError when it cannot be written."""
    tensors = {f"model.{n}": t for n, t in model.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema.{n}": t for n, t in ema.model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}:{key}"] = value
    tensors["rng.torch_cpu"] = rng.torch_cpu
    if rng.torch_cuda is not None:
        tensors["rng.torch_cuda"] = rng.torch_cuda
    numpy_state = {**rng.numpy, "state": {**rng.numpy["state"]}}
    tensors["rng.numpy"] = torch.from_numpy(numpy_state["state"].pop("key").astype(np.int64))
    metadata = {
        METADATA_KEY: to_json(meta),
        _COUNTERS_KEY: json.dumps(dataclasses.asdict(counters)),
        _RNG_KEY: json.dumps({"numpy": numpy_state, "python": rng.python}),
    }
    write_tensors(path, tensors, metadata)


@dataclass(frozen=True)
class SavedState:
    """A training state in memory; `restore` puts it into freshly built objects."""

    path: Path
    meta: CheckpointMeta
    counters: Counters
    rng: RngState
    tensors: dict[str, Tensor]

    def restore(
        self, model: nn.Module, ema: Ema[Any] | None, optimizer: torch.optim.Optimizer
    ) -> None:
        """Put weights, average and optimiser moments back; the generators are `rng`'s business.

        Raises: CheckpointError when the state belongs to another model or recipe.
        """
        self._load(model, "model.")
        if ema is not None:
            self._load(ema.model, "ema.")
            ema.updates = self.counters.ema_updates
        named = dict(model.named_parameters())
        optimizer.state.clear()
        for key, tensor in self._part("optimizer.").items():
            name, _, slot = key.rpartition(":")
            if name not in named:
                raise CheckpointError(f"{self.path}: optimiser state for unknown '{name}'")
            parameter = named[name]
            optimizer.state[parameter][slot] = tensor.to(parameter.device).clone()

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: t for k, t in self.tensors.items() if k.startswith(prefix)}

    def _load(self, module: nn.Module, prefix: str) -> None:
        part = self._part(prefix)
        if not part:
            raise CheckpointError(
                f"{self.path}: holds no '{prefix[:-1]}' weights", "resume with the same options"
            )
        try:
            module.load_state_dict(part)
        except RuntimeError as error:
            raise CheckpointError(f"{self.path}: of another model: {error}") from error


def load_state(path: Path) -> SavedState:
    """Read a training state. Raises CheckpointError when it is missing, damaged or not one."""
    tensors, metadata = read_tensors(path)
    try:
        numbers = json.loads(metadata[_COUNTERS_KEY])
        sentinel = Sentinel(**numbers.pop("sentinel", {}))
        counters = Counters(**numbers, sentinel=sentinel)
        rng = json.loads(metadata[_RNG_KEY])
        numpy_state = rng["numpy"]
        key = tensors.pop("rng.numpy").numpy().astype(np.uint32)
        numpy_state["state"] = {**numpy_state["state"], "key": key}
        version, internal, gauss = rng["python"]
        python = (version, tuple(internal), gauss)
        state = RngState(
            tensors.pop("rng.torch_cpu"), tensors.pop("rng.torch_cuda", None), numpy_state, python
        )
        meta = from_json(metadata[METADATA_KEY], str(path))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a training state ({error!r})") from error
    return SavedState(path, meta, counters, state, tensors)
