"""The neutral form of a labelled data set: every format is read into it and written from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dino_core.detections import ClassMap


@dataclass(frozen=True)
class ImageRecord:
    """One image and its boxes.

    Attributes:
        image_id: The data set's own image id, unique in its split.
        path: The image file.
        width: Upright width in pixels.
        height: Upright height in pixels.
        boxes_xyxy_px: (N, 4) float32.
        class_indices: (N,) int64, indices into the data set's ClassMap.
        is_crowd: (N,) bool; crowds are left out of training and ignored in evaluation.
        areas: (N,) float32, COCO's own `area` where given, else width times height.
        flags: (N,) bool each, marks by name that only some forms know: VOC's "difficult",
            "truncated" and "occluded". They are kept for converters; training and evaluation
            take such boxes like any other.
    """

    image_id: int
    path: Path
    width: int
    height: int
    boxes_xyxy_px: NDArray[np.float32]
    class_indices: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    areas: NDArray[np.float32]
    flags: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)


class SetApart(NamedTuple):
    """How a validation split was made of train: the share of its images, and the seed."""

    share: float
    seed: int


@dataclass(frozen=True)
class DatasetIndex:
    """A data set: its classes and the records of each split, in file order.

    Attributes:
        root: Where it was read from.
        format: "coco", "yolo", "voc" or "csv".
        classes: Index, name and source id of each class.
        splits: Split name ("train", "val", "test") to records.
        warnings: What was repaired or left out while reading, one sentence each with its place.
        unread: What the source holds beyond this form, one sentence each, for converters to tell.
        set_apart: How "val" was made; None where the data has its own, or none.
    """

    root: Path
    format: str
    classes: ClassMap
    splits: Mapping[str, tuple[ImageRecord, ...]]
    warnings: tuple[str, ...] = field(default=())
    unread: tuple[str, ...] = field(default=())
    set_apart: SetApart | None = None

    def to_coco(self, path: str | Path) -> list[str]:
        """Write as a COCO data set into a folder; returns what could not be kept."""
        from dino_core.data.formats.coco import write_coco

        return write_coco(self, Path(path))

    def to_yolo(self, path: str | Path) -> list[str]:
        """Write as a YOLO data set into a folder; returns what could not be kept."""
        from dino_core.data.formats.yolo import write_yolo

        return write_yolo(self, Path(path))

    def to_voc(self, path: str | Path) -> list[str]:
        """Write as a Pascal VOC data set into a folder; returns what could not be kept."""
        from dino_core.data.formats.voc import write_voc

        return write_voc(self, Path(path))

    def to_csv(self, path: str | Path) -> list[str]:
        """Write as a CSV table with its images into a folder; returns what could not be kept."""
        from dino_core.data.formats.csv_table import write_csv

        return write_csv(self, Path(path))
