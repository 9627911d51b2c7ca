"""The facts that a plan is made from: data, model and machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dino_core.checkpoints.surgery import TransferReport
from dino_core.config import PreprocessConfig
from dino_core.data.load import require_split
from dino_core.data.records import DatasetIndex, ImageRecord
from dino_core.engine.start import Start
from dino_core.errors import DataError
from dino_core.process import usable_cores
from dino_core.processing.preprocess import resized_size


@dataclass(frozen=True)
class DataFacts:
    """Facts about the data, as the model would see them at its own input size.

    Attributes:
        images: Training images.
        boxes: Their boxes, without crowds.
        val_images: Validation images.
        object_px: Median side of a box (square root of its area) in pixels of that input.
        detail: Long side of an image on disk over that of the input, as a median.
    """

    images: int
    boxes: int
    val_images: int
    object_px: float
    detail: float


@dataclass(frozen=True)
class ModelFacts:
    """Facts about the model that a run starts from.

    Attributes:
        parameters: Number of parameters, frozen ones included.
        input_px: Long side of its own input in pixels.
        trained: Whether its backbone starts from trained weights.
    """

    parameters: int
    input_px: int
    trained: bool


@dataclass(frozen=True)
class Machine:
    """Facts about the machine that a run uses.

    Attributes:
        device: "cpu", "cuda" or "mps".
        cores: Processor cores that this process may use.
        processes: Number of training processes, one per device.
        fits: Most images that fit in a forward pass, found by a trial; None before any trial.
    """

    device: str
    cores: int
    processes: int = 1
    fits: int | None = None

    @classmethod
    def here(cls, device: torch.device, processes: int) -> Machine:
        """This machine, with its cores divided among the processes on it."""
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
        return cls(device.type, max(1, usable_cores() // local), processes)


def check_data(dataset: DatasetIndex) -> None:
    """Raises DataError where there are no training images, or none of them has a box."""
    records = require_split(dataset, "train")
    if not any(boxes_of_images(records)):
        raise DataError(f"{dataset.root}: no boxes in {len(records)} training images")


def data_facts(dataset: DatasetIndex, own_input: PreprocessConfig) -> DataFacts:
    """Measure the training split of data that `check_data` accepts.

    Args:
        dataset: The data.
        own_input: The model's input before the plan chooses its size.
    """
    records = dataset.splits["train"]
    sides = np.concatenate([_object_sides_px(record, own_input) for record in records])
    # Above 1 the file has more pixels than the input, so that a larger input shows more.
    detail = [max(r.height, r.width) / max(_input_hw(r, own_input)) for r in records]
    return DataFacts(
        images=len(records),
        boxes=int(sides.size),
        val_images=len(dataset.splits.get("val", ())),
        object_px=float(np.median(sides)),
        detail=float(np.median(detail)),
    )


def model_facts(start: Start) -> ModelFacts:
    """Measure a model that was built."""
    return ModelFacts(
        parameters=sum(p.numel() for p in start.model.parameters()),
        input_px=start.preprocess.max_side,
        trained=_is_trained(start.report),
    )


def _is_trained(report: TransferReport | None) -> bool:
    """Whether the backbone has trained weights; one that is not the starting model's has none."""
    return report is not None and not any(n.startswith("backbone.") for n in report.kept)


def boxes_of_images(records: Sequence[ImageRecord]) -> list[int]:
    """Number of boxes of each image that are trained on: all but crowds."""
    return [int((~record.is_crowd).sum()) for record in records]


def _input_hw(record: ImageRecord, own_input: PreprocessConfig) -> tuple[int, int]:
    return resized_size((record.height, record.width), own_input)


def _object_sides_px(record: ImageRecord, own_input: PreprocessConfig) -> np.ndarray:
    """(N,) square roots of the boxes' areas, in pixels of the network's input."""
    boxes = record.boxes_xyxy_px[~record.is_crowd].astype(np.float64)
    # In float64, since areas of large images exceed what float32 counts exactly.
    sides = np.sqrt(np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None), axis=1))
    scale: float = max(_input_hw(record, own_input)) / max(record.height, record.width)
    return np.asarray(sides * scale)
