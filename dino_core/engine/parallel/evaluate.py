"""Evaluation by all processes of a run: each predicts its share, all get the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from dino_core.config import PreprocessConfig
from dino_core.data.records import ImageRecord
from dino_core.detections import ClassMap
from dino_core.engine.parallel.collectives import gather_rows, rank, sums, world_size
from dino_core.errors import DataError
from dino_core.evaluation.coco_metrics import coco_metrics
from dino_core.evaluation.evaluate import EvaluationResult, predict_groups, shape_groups, torch_run
from dino_core.processing.postprocess import Decoded


def evaluate_together(
    model: nn.Module,
    records: Sequence[ImageRecord],
    classes: ClassMap,
    preprocess: PreprocessConfig,
    *,
    batch: int,
    device: torch.device,
    dtype: str = "auto",
    interrupted: Callable[[], bool] = lambda: False,
) -> EvaluationResult:
    """Numbers and detections, equal in every process; which one predicts an image changes nothing.

    Args:
        model: A Dino on `device`, with the same weights in all processes; its mode is kept.
        records: All images, in all processes.
        classes: The classes of both.
        preprocess: The model's input.
        batch: The most images at once.
        device: Where the model is.
        dtype: "auto", "fp32", or "bf16"/"fp16" for autocast.
        interrupted: Asked after each batch; where it says yes in any process, all stop.

    Raises:
        DataError: an image cannot be read, by whichever process.
        KeyboardInterrupt: all were asked to stop.
    """
    groups = shape_groups(records, preprocess, batch, preprocess.canvas)[rank() :: world_size()]
    run = torch_run(model, str(device), dtype)
    predictions: dict[int, Decoded] = {}
    seconds, stop = 0.0, False
    failure: DataError | None = None
    training = model.training
    model.eval()
    try:
        for found, spent in predict_groups(run, records, groups, preprocess, preprocess.canvas):
            predictions.update(found)
            seconds += spent
            if stop := interrupted():
                break
    except DataError as error:
        failure = error
    finally:
        model.train(training)
    failures, stops, spent = sums([float(failure is not None), float(stop), seconds], device)
    if failures:
        raise failure or DataError("another process cannot read a validation image")
    if stops:
        raise KeyboardInterrupt
    ordered = gather_predictions(predictions, len(records), device)
    ms = 1000 * spent / len(records) if records else None  # of one device
    metrics = coco_metrics(records, ordered, classes, ms_per_image=ms)
    return EvaluationResult(metrics, tuple(records), ordered, classes)


def gather_predictions(
    mine: Mapping[int, Decoded], count: int, device: torch.device
) -> tuple[Decoded, ...]:
    """The predictions of `count` images, in order, from the shares of all processes."""
    own = [mine[index] for index in sorted(mine)]
    places = [
        np.stack([np.full(len(d.scores), index), d.class_indices], axis=1)
        for index, d in zip(sorted(mine), own, strict=True)
    ]
    values = [np.column_stack([d.boxes_xyxy_px, d.scores]) for d in own]
    numbers = np.concatenate([np.zeros((0, 5), np.float32), *values])
    integers = np.concatenate([np.zeros((0, 2), np.int64), *places])
    rows = torch.cat(gather_rows(torch.from_numpy(numbers).to(device))).cpu().numpy()
    ids = torch.cat(gather_rows(torch.from_numpy(integers).to(device))).cpu().numpy()
    order = np.argsort(ids[:, 0], kind="stable")  # an image is one process's, in its order
    cuts = np.searchsorted(ids[order, 0], np.arange(1, count))
    return tuple(
        Decoded(part[:, :4], part[:, 4], classes)
        for part, classes in zip(
            np.split(rows[order], cuts), np.split(ids[order, 1], cuts), strict=True
        )
    )
