"""Precision over recall at one IoU, and the score threshold at which F1 is best, for each class.

The curves are pycocotools' interpolated ones (101 recalls, precision made non-increasing), so that
the area under a curve is that class's AP at this IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dino_core.data.records import ImageRecord
from dino_core.detections import ClassMap
from dino_core.evaluation.assignment import NO_OBJECT, Matches, match_detections
from dino_core.evaluation.coco_metrics import PredictedBoxes

RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class BestF1:
    """The threshold at which F1 is greatest; None where nothing is found at any.

    Attributes:
        threshold: Detections of this score and above count.
        f1: 2 * precision * recall / (precision + recall) there.
    """

    threshold: float | None
    f1: float


@dataclass(frozen=True)
class ClassCurve:
    """One class that the images show.

    Attributes:
        name: Its name.
        boxes: Its objects, crowds not counted.
        precision: (101,) the best precision at each of RECALLS or a higher recall, 0 beyond reach.
        best: Where its F1 is best.
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
    """The curves of all classes that the images show.

    Attributes:
        curves: In class order; classes without an object have none.
        iou: The overlap that counts as found.
        best: One threshold for all classes, all their detections counted together.
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
    """Curves from the detections of every image, in the same order as `records`."""
    boxes = np.zeros(len(classes), np.int64)
    for record in records:
        boxes += np.bincount(record.class_indices[~record.is_crowd], minlength=len(classes))
    matches = [match_detections(r, p, iou) for r, p in zip(records, predictions, strict=True)]
    scores, labels, found = _gather(matches)
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
    matches: Sequence[Matches],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Scores, classes and correctness of all detections, best first; those in crowds left out."""
    counted = [~m.in_crowd for m in matches]
    pairs = list(zip(matches, counted, strict=True))
    scores = np.concatenate([np.zeros(0), *(m.scores[k] for m, k in pairs)])
    labels = np.concatenate([np.zeros(0, np.int64), *(m.class_indices[k] for m, k in pairs)])
    found = np.concatenate([np.zeros(0, bool), *(m.objects[k] != NO_OBJECT for m, k in pairs)])
    order = np.argsort(-scores, kind="stable")
    return scores[order], labels[order], found[order]


def interpolated(found: NDArray[np.bool_], boxes: int) -> NDArray[np.float64]:
    """(101,) interpolated precision of detections in the order of their scores.

    Args:
        found: (N,) whether each detection is right.
        boxes: Objects to be found, at least 1.
    """
    right = np.cumsum(found)
    recall = right / boxes
    precision = right / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(recall, RECALLS, side="left")  # the first that reaches each recall
    return np.append(envelope, 0.0)[np.minimum(place, len(envelope))]


def best_f1(scores: NDArray[np.float64], found: NDArray[np.bool_], boxes: int) -> BestF1:
    """The best threshold for detections in the order of their scores; of equals the highest."""
    if not found.any():
        return BestF1(None, 0.0)
    right = np.cumsum(found)
    # F1 = 2 TP / (detections + objects), van Rijsbergen's effectiveness with equal weights.
    f1 = 2 * right / (np.arange(1, len(found) + 1) + boxes)
    f1[:-1][scores[:-1] == scores[1:]] = 0.0  # a threshold cannot part equal scores
    place = int(np.argmax(f1))
    return BestF1(float(scores[place]), float(f1[place]))
