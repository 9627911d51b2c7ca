"""The confusion matrix of a detector: what each object was taken for, and what was made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dino_core.data.records import ImageRecord
from dino_core.detections import ClassMap
from dino_core.evaluation.assignment import (
    NO_OBJECT,
    Matches,
    match_detections,
    pairwise_iou,
    take_in_order,
)
from dino_core.evaluation.coco_metrics import PredictedBoxes


@dataclass(frozen=True)
class ConfusionMatrix:
    """How often each class was taken for each.

    Attributes:
        names: C class names.
        counts: (C + 1, C + 1) int64: row the truth, column the prediction, the last ones
            background: the last column counts missed objects, the last row invented ones.
        threshold: The lowest score that counts.
        iou: The overlap from which a detection is about an object.
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

    Objects are first given detections of their own class, as for AP (the diagonal therefore counts
    the true positives at this threshold); what is left on both sides is then paired whatever the
    class, best score first, by the greatest overlap. Detections in crowds do not count.
    """
    size = len(classes)
    counts = np.zeros((size + 1, size + 1), np.int64)
    for record, predicted in zip(records, predictions, strict=True):
        truth, found = _pairs(record, match_detections(record, predicted, iou), threshold, iou)
        np.add.at(counts, (np.where(truth < 0, size, truth), np.where(found < 0, size, found)), 1)
    named = [index for index, name in enumerate(classes.names) if name]
    kept = [*named, size]
    names = tuple(classes.names[index] for index in named)
    return ConfusionMatrix(names, counts[np.ix_(kept, kept)], threshold, iou)


def _pairs(
    record: ImageRecord, matches: Matches, threshold: float, iou: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Classes of object and detection of each pair; -1 on the side where nothing is."""
    counted = (matches.scores >= threshold) & ~matches.in_crowd
    objects, labels = matches.objects[counted].copy(), matches.class_indices[counted]
    free = ~record.is_crowd
    free[objects[objects != NO_OBJECT]] = False
    overlap = pairwise_iou(
        matches.boxes_xyxy_px[counted], record.boxes_xyxy_px, np.zeros(len(free), bool)
    )
    open_pairs = (overlap >= iou) & (objects == NO_OBJECT)[:, None] & free
    objects = np.where(objects == NO_OBJECT, take_in_order(overlap, open_pairs), objects)
    missed = ~record.is_crowd
    missed[objects[objects != NO_OBJECT]] = False
    classes = np.append(record.class_indices, -1)  # the last one for NO_OBJECT
    truth = np.concatenate([classes[objects], record.class_indices[missed]])
    found = np.concatenate([labels, np.full(int(missed.sum()), -1, np.int64)])
    return truth, found
