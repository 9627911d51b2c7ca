"""Evaluation by all processes of a run: each predicts its share, and all get the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from dino_core.config import PreprocessConfig
from dino_core.data.records import ImageRecord
from dino_core.detections import ClassMap
from dino_core.engine.parallel.collectives import gather_rows, rank, sums, world_size
from dino_core.errors import DataError
from dino_core.evaluation.evaluate import EvaluationResult, predict_groups, scored, shape_groups
from dino_core.inference.pipeline import Pipeline
from dino_core.inference.torch_runtime import resolve_dtype, run_model
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
    """Evaluate a model; every process gets the same numbers and detections as one alone would.

    Args:
        model: A Dino on `device`, with the same weights in all processes; its mode is kept.
        records: All images, in all processes.
        classes: The classes of model and data.
        preprocess: The model's input.
        batch: Maximum images per forward pass.
        device: Where the model is.
        dtype: "auto", "fp32", or "bf16"/"fp16" for autocast.
        interrupted: Called after each batch; if it returns True in any process, all stop.

    Raises:
        DataError: an image cannot be read, in any process.
        KeyboardInterrupt: a process was interrupted.
    """
    run = partial(run_model, model, device=device, dtype=resolve_dtype(dtype))
    pipeline = Pipeline(run, preprocess, preprocess.canvas)
    # Dealt out in turns: groups of one shape follow each other, so every process gets its share of
    # the large images.
    groups = shape_groups(pipeline, records, batch)[rank() :: world_size()]
    predictions: dict[int, Decoded] = {}
    seconds, stop = 0.0, False
    failure: DataError | None = None
    training = model.training
    model.eval()
    try:
        for found, spent in predict_groups(pipeline, records, groups):
            predictions.update(found)
            seconds += spent
            if stop := interrupted():
                break
    except DataError as error:
        failure = error
    finally:
        model.train(training)
    # A process that raised at once would leave the others waiting in the next collective, so all
    # first learn how each of them fared.
    failures, stops, spent = sums([float(failure is not None), float(stop), seconds], device)
    if failures:
        # The process that failed names its image; the others only know that one did.
        raise failure or DataError("another process cannot read a validation image")
    if stops:
        raise KeyboardInterrupt
    ordered = gather_predictions(predictions, len(records), device)
    # `spent` is the sum over the processes, so the time per image is that of one device alone.
    return scored(records, ordered, classes, spent)


def gather_predictions(
    mine: Mapping[int, Decoded], count: int, device: torch.device
) -> tuple[Decoded, ...]:
    """Collect the predictions of all processes.

    Args:
        mine: Image index to prediction, of the images of this process.
        count: Images of all processes together.
        device: Where the collectives run.

    Returns:
        The predictions of all images, in order, equal in every process.
    """
    own = [mine[index] for index in sorted(mine)]
    places = [
        np.stack([np.full(len(d.scores), index), d.class_indices], axis=1)
        for index, d in zip(sorted(mine), own, strict=True)
    ]
    values = [np.column_stack([d.boxes_xyxy_px, d.scores]) for d in own]
    # The empty array keeps the shape and dtype where this process has no images at all.
    numbers = np.concatenate([np.zeros((0, 5), np.float32), *values])
    integers = np.concatenate([np.zeros((0, 2), np.int64), *places])
    # Two exchanges, because float32 cannot hold every image index exactly.
    rows = torch.cat(gather_rows(torch.from_numpy(numbers).to(device))).cpu().numpy()
    ids = torch.cat(gather_rows(torch.from_numpy(integers).to(device))).cpu().numpy()
    order = np.argsort(ids[:, 0], kind="stable")  # stable: keeps each image's own order
    # Images without detections get an empty part: two equal cuts.
    cuts = np.searchsorted(ids[order, 0], np.arange(1, count))
    return tuple(
        Decoded(part[:, :4], part[:, 4], classes)
        for part, classes in zip(
            np.split(rows[order], cuts), np.split(ids[order, 1], cuts), strict=True
        )
    )
