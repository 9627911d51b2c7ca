"""`train()` and `fit()`: from a data set's folder to a trained model, at once or step by step."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from itertools import count
from pathlib import Path
from typing import Any

from dino_core.config import TrainConfig, from_dict
from dino_core.data.load import load_dataset
from dino_core.data.records import DatasetIndex
from dino_core.engine.events import Event
from dino_core.engine.fit import run_events
from dino_core.engine.parallel.collectives import gather_texts, rank
from dino_core.engine.parallel.group import device_of_process
from dino_core.engine.request import RunRequest
from dino_core.engine.summary import RunSummary


def train(
    data: str | Path | DatasetIndex,
    model: str = "dino-nano",
    *,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    **settings: Any,
) -> RunSummary:
    """Train or fine-tune a model to the end of the run.

        summary = train("data/", epochs=20, out="runs/mine")
        print(summary.best_ap, summary.best)

    Arguments and errors are those of `fit`, which does the same step by step.

    Returns:
        Where the model files are, the scores, and how long the run took.

    Raises:
        DinoError: as `fit`; the run folder then holds the last checkpoint.
    """
    events = fit(data, model, out=out, weights=weights, **settings)
    with contextlib.closing(events):
        while True:
            try:
                next(events)
            except StopIteration as end:
                summary: RunSummary = end.value
                return summary


def fit(
    data: str | Path | DatasetIndex,
    model: str = "dino-nano",
    *,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    **settings: Any,
) -> Generator[Event, None, RunSummary]:
    """Train or fine-tune a model step by step: every iteration trains on to the next event.

        for event in fit("data/", epochs=20):
            if isinstance(event, EvaluationDone):
                print(event.step, event.metrics.ap)

    The events are the classes of `dino_core.engine.events`; the last one is a `RunFinished` with
    the summary. Closing the generator saves a checkpoint. In several processes
    (`dino_core.engine.parallel.group.process_group`, or a process group of your own), each of them
    calls this and iterates to the end, and rank 0 writes the folder.

    Args:
        data: A data set's folder or file, or what `load_dataset` returned.
        model: A variant's name or a model file.
        out: The run folder. None takes the first of runs/train, runs/train-2, ... that is free.
        weights: Starting weights: a model file, "none" for random ones, None for the model's own.
        settings: Fields of `TrainConfig`, e.g. `epochs=20, lr=1e-4`.

    Raises:
        ConfigError: a setting is unknown (with the nearest known one) or has a wrong value.
        DataError: the data cannot be read.
        CheckpointError: there is no such model, or the weights do not fit.
        DinoError: memory is too short for one image, or the loss does not recover.
    """
    config = from_dict(TrainConfig, settings, "train")
    if not isinstance(data, DatasetIndex):
        data = load_dataset(data, val_split=config.val_split, seed=config.seed)
    folder = Path(out) if out is not None else _free_folder(config.device)
    return run_events(RunRequest(config, data, folder, model=model, weights=weights))


def _free_folder(device: str) -> Path:
    """The first free name; of several processes, rank 0 chooses it for all."""
    names = (Path("runs", "train" if n == 1 else f"train-{n}") for n in count(1))
    free = str(next(path for path in names if not path.exists())) if rank() == 0 else ""
    return Path(gather_texts(free, device_of_process(device))[0])
