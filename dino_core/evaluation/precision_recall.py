"""Precision over recall at one IoU, and the score threshold at which F1 is best, for each class.

The curves are pycocotools' interpolated ones (101 recalls, precision made non-increasing), so that
the area under a curve is that class's AP at this IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dino_core.data.records import ImageRecord, boxes_by_class
from dino_core.detections import ClassMap
from dino_core.evaluation.assignment import NO_OBJECT, Assignment, assign_detections
from dino_core.evaluation.coco_metrics import PredictedBoxes

RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class BestF1:
    """The score threshold at which F1 is greatest.

    Attributes:
        threshold: Lowest score that counts; None where no threshold finds anything.
        f1: 2 * precision * recall / (precision + recall) there.
    """

    threshold: float | None
    f1: float


@dataclass(frozen=True)
class ClassCurve:
    """The curve of one class of which there are objects.

    Attributes:
        name: The class.
        boxes: Number of its objects, without crowd regions.
        precision: (101,) best precision at each of RECALLS or a higher recall; 0 where the recall
            is never reached.
        best: The threshold with its best F1.
    """

    name: str
    boxes: int
    precision: NDArray[np.float64]
    best: BestF1

    @property
    def ap(self) -> float:
        """The area under the curve."""
        return float(self.precision.mean())


@dataclass(frozen=True)
class PrecisionRecall:
    """The curves of all classes of which there are objects.

    Attributes:
        curves: In class order; classes without objects have none.
        iou: Lowest IoU at which an object counts as found.
        best: One threshold for all classes, from the detections of all classes together.
    """

    curves: tuple[ClassCurve, ...]
    iou: float
    best: BestF1

    @property
    def mean(self) -> NDArray[np.float64]:
        """(101,) mean precision of the classes; zeros without any."""
        curves = [c.precision for c in self.curves] or [np.zeros(len(RECALLS))]
        return np.asarray(np.mean(curves, axis=0), np.float64)


def precision_recall(
    records: Sequence[ImageRecord],
    predictions: Sequence[PredictedBoxes],
    classes: ClassMap,
    iou: float = 0.5,
) -> PrecisionRecall:
    """Compute the curves.

    Args:
        records: The images with their boxes.
        predictions: Detections of each image, in the same order.
        classes: Meaning of the class indices of both.
        iou: Lowest IoU at which an object counts as found.
    """
    boxes = boxes_by_class(records, len(classes))
    assigned = [assign_detections(r, p, iou) for r, p in zip(records, predictions, strict=True)]
    scores, labels, found = _gather(assigned)
    curves = []
    for index, name in enumerate(classes.names):
        if name and boxes[index]:
            mine = labels == index
            count = int(boxes[index])
            precision = interpolated(found[mine], count)
            best = best_f1(scores[mine], found[mine], count)
            curves.append(ClassCurve(name, count, precision, best))
    return PrecisionRecall(tuple(curves), iou, best_f1(scores, found, int(boxes.sum())))


def _gather(
    assigned: Sequence[Assignment],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Scores, classes and correctness of all detections outside crowds, best score first."""
    counted = [~a.in_crowd for a in assigned]
    pairs = list(zip(assigned, counted, strict=True))
    scores = np.concatenate([np.zeros(0), *(a.scores[k] for a, k in pairs)])
    labels = np.concatenate([np.zeros(0, np.int64), *(a.class_indices[k] for a, k in pairs)])
    found = np.concatenate([np.zeros(0, bool), *(a.objects[k] != NO_OBJECT for a, k in pairs)])
    order = np.argsort(-scores, kind="stable")
    return scores[order], labels[order], found[order]


def interpolated(found: NDArray[np.bool_], boxes: int) -> NDArray[np.float64]:
    """Interpolate precision at the 101 recalls of COCO's evaluation.

    Args:
        found: (N,) whether each detection finds an object, best score first.
        boxes: Number of objects, at least 1.

    Returns:
        (101,) float64.
    """
    right = np.cumsum(found)
    recall = right / boxes
    precision = right / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(recall, RECALLS, side="left")  # first to reach each recall
    return np.append(envelope, 0.0)[np.minimum(place, len(envelope))]


def best_f1(scores: NDArray[np.float64], found: NDArray[np.bool_], boxes: int) -> BestF1:
    """Find the score threshold with the best F1; on ties the highest threshold.

    Args:
        scores: (N,) scores in descending order.
        found: (N,) whether each detection finds an object.
        boxes: Number of objects.
    """
    if not found.any():
        return BestF1(None, 0.0)
    right = np.cumsum(found)
    # F1 = 2 TP / (detections + objects), van Rijsbergen's effectiveness with equal weights.
    f1 = 2 * right / (np.arange(1, len(found) + 1) + boxes)
    f1[:-1][scores[:-1] == scores[1:]] = 0.0  # a threshold cannot separate equal scores
    place = int(np.argmax(f1))
    return BestF1(float(scores[place]), float(f1[place]))
