"""The neutral form of a labeled data set: every format is read into it and written from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dino_core.data.faults import Fault, summarized
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
        flags: (N,) bool each, by name: flags that only some formats know, such as VOC's
            "difficult", "truncated" and "occluded". Converters keep them; training and
            evaluation use such boxes like any other.
        stated_xyxy_px: (N, 4) float32, the same boxes before those that reach outside the image
            were clipped; None where none does.
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
    stated_xyxy_px: NDArray[np.float32] | None = None

    @property
    def scored_xyxy_px(self) -> NDArray[np.float32]:
        """(N, 4) the boxes by which predictions are scored, as pycocotools reads them."""
        return self.boxes_xyxy_px if self.stated_xyxy_px is None else self.stated_xyxy_px

    def boxes_by_class(self, classes: int) -> NDArray[np.int64]:
        """(C,) number of objects of each class, without crowds."""
        return np.bincount(self.class_indices[~self.is_crowd], minlength=classes)


def boxes_by_class(records: Iterable[ImageRecord], classes: int) -> NDArray[np.int64]:
    """(C,) number of objects of each class in all images, without crowds."""
    counts = np.zeros(classes, np.int64)
    for record in records:
        counts += record.boxes_by_class(classes)
    return counts


class SetApart(NamedTuple):
    """How a validation split was made of train: the share of its images, and the seed."""

    share: float
    seed: int


@dataclass(frozen=True)
class DatasetIndex:
    """A data set: its classes and the records of each split, in file order.

    Attributes:
        root: Where it was read from.
        format: A key of `formats.table.FORMATS`.
        classes: Index, name and source id of each class.
        splits: Split name ("train", "val", "test") to records.
        faults: What was repaired or left out while reading, each with its place.
        unread: What the source holds that this form has no place for, one sentence each;
            converters report it.
        set_apart: How "val" was made; None where the data has its own, or none.
        named_splits: The splits that the data name, those included of which nothing could be read.
    """

    root: Path
    format: str
    classes: ClassMap
    splits: Mapping[str, tuple[ImageRecord, ...]]
    faults: tuple[Fault, ...] = field(default=())
    unread: tuple[str, ...] = field(default=())
    set_apart: SetApart | None = None
    named_splits: frozenset[str] = frozenset()

    @property
    def records(self) -> list[ImageRecord]:
        """The records of all splits."""
        return [record for split in self.splits.values() for record in split]

    @property
    def lost_splits(self) -> frozenset[str]:
        """The splits that the data name, but of which nothing could be read."""
        return self.named_splits - self.splits.keys()

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence per kind of fault, with the first place."""
        return summarized(self.faults)
