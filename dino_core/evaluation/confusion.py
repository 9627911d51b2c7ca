"""The confusion matrix of a detector: objects by predicted class, missed ones and false ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dino_core.data.records import ImageRecord
from dino_core.detections import ClassMap
from dino_core.evaluation.assignment import (
    NO_OBJECT,
    Assignment,
    assign_detections,
    take_in_order,
)
from dino_core.evaluation.coco_metrics import PredictedBoxes
from dino_core.processing.overlap import box_iou


@dataclass(frozen=True)
class ConfusionMatrix:
    """How often objects of each class were predicted as each class.

    Attributes:
        names: C class names.
        counts: (C + 1, C + 1) int64. Rows are the true class, columns the predicted one; the last
            row and column are background. The last column counts missed objects, the last row
            detections without an object.
        threshold: Lowest score of the detections counted.
        iou: Lowest IoU at which a detection and an object form a pair.
    """

    names: tuple[str, ...]
    counts: NDArray[np.int64]
    threshold: float
    iou: float


def confusion_matrix(
    records: Sequence[ImageRecord],
    predictions: Sequence[PredictedBoxes],
    classes: ClassMap,
    threshold: float,
    iou: float = 0.5,
) -> ConfusionMatrix:
    """Count pairs of object and detection.

    Objects are first assigned detections of their own class, as for AP, so the diagonal counts the
    true positives at this threshold. What is left on both sides is then paired regardless of class,
    best score first, by the greatest IoU. Detections in crowd regions do not count.
    """
    # One more row and column than classes, for background.
    size = len(classes)
    counts = np.zeros((size + 1, size + 1), np.int64)
    for record, predicted in zip(records, predictions, strict=True):
        truth, found = _pairs(record, assign_detections(record, predicted, iou), threshold, iou)
        np.add.at(counts, (np.where(truth < 0, size, truth), np.where(found < 0, size, found)), 1)
    named = [index for index, name in enumerate(classes.names) if name]
    # Unnamed classes are unused columns of the official heads (ALGORITHM 29).
    kept = [*named, size]
    names = tuple(classes.names[index] for index in named)
    return ConfusionMatrix(names, counts[np.ix_(kept, kept)], threshold, iou)


def _pairs(
    record: ImageRecord, assigned: Assignment, threshold: float, iou: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True and predicted class of each pair; -1 on the side that has no partner."""
    counted = (assigned.scores >= threshold) & ~assigned.in_crowd
    objects, labels = assigned.objects[counted].copy(), assigned.class_indices[counted]
    # Objects that a detection of their own class has found are no longer to be had for others.
    free = ~record.is_crowd
    free[objects[objects != NO_OBJECT]] = False
    overlap = box_iou(assigned.boxes_xyxy_px[counted], record.boxes_xyxy_px)  # (N, G)
    open_pairs = (overlap >= iou) & (objects == NO_OBJECT)[:, None] & free
    objects = np.where(objects == NO_OBJECT, take_in_order(overlap, open_pairs), objects)
    missed = ~record.is_crowd
    missed[objects[objects != NO_OBJECT]] = False
    classes = np.append(record.class_indices, -1)  # index NO_OBJECT is the last one
    truth = np.concatenate([classes[objects], record.class_indices[missed]])
    found = np.concatenate([labels, np.full(int(missed.sum()), -1, np.int64)])
    return truth, found
