"""`train()`: from a data set's folder to a stream of training events."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from dino_core.config import TrainConfig, from_dict
from dino_core.data.load import load_dataset
from dino_core.data.records import DatasetIndex
from dino_core.engine.events import Event
from dino_core.engine.fit import fit
from dino_core.engine.parallel.collectives import gather_texts, rank
from dino_core.engine.parallel.group import device_of_process


def train(
    data: str | Path | DatasetIndex,
    model: str = "dino-nano",
    *,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    **settings: Any,
) -> Iterator[Event]:
    """Train or fine-tune; iterate to do it, and look at the events as they come.

    In several processes (`dino_core.engine.parallel.group.process_group`, or a group of your own)
    each of them calls this and iterates to the end; process 0 writes the folder.

    Args:
        data: A data set's folder or file, or what `load_dataset` returned.
        model: A variant's name or a model file.
        out: The run's folder; the first free of runs/train, runs/train-2, ... where None.
        weights: Starting weights: a model file, "none" (random), None for the model's own.
        settings: Fields of `TrainConfig`, e.g. `epochs=20, lr=1e-4`.

    Raises:
        ConfigError: an unknown setting, with the nearest known one, or a wrong value.
        DataError: the data cannot be read.
        CheckpointError: no such model or weights.
    """
    config = from_dict(TrainConfig, settings, "train")
    if not isinstance(data, DatasetIndex):
        data = load_dataset(data, val_split=config.val_split, seed=config.seed)
    folder = Path(out) if out is not None else _free_folder(config.device)
    return fit(config, data, out=folder, model=model, weights=weights)


def _free_folder(device: str) -> Path:
    """The first free name, which process 0 of several chooses for all."""
    names = (Path("runs", "train" if n == 1 else f"train-{n}") for n in count(1))
    free = str(next(path for path in names if not path.exists())) if rank() == 0 else ""
    return Path(gather_texts(free, device_of_process(device))[0])
