"""Which detection finds which object, at one IoU: pycocotools' rules for one image, in numpy.

Precision-recall curves and confusion matrices need to know the pairs, which `COCOeval` keeps to
itself; the numbers that people compare still come from that library (coco_metrics.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dino_core.data.records import ImageRecord
from dino_core.evaluation.coco_metrics import PredictedBoxes

MAX_DETECTIONS = 100  # of a class in an image, the best ones, as in COCO's evaluation
NO_OBJECT = -1


@dataclass(frozen=True)
class Matches:
    """The N detections of one image that count, best score first.

    Attributes:
        scores: (N,) float64.
        class_indices: (N,) int64.
        boxes_xyxy_px: (N, 4) float64.
        objects: (N,) int64, the row of the ground-truth box that each one finds, or NO_OBJECT.
        in_crowd: (N,) bool, it finds nothing but lies in a crowd of its class: not a mistake.
    """

    scores: NDArray[np.float64]
    class_indices: NDArray[np.int64]
    boxes_xyxy_px: NDArray[np.float64]
    objects: NDArray[np.int64]
    in_crowd: NDArray[np.bool_]


def match_detections(
    record: ImageRecord, predicted: PredictedBoxes, iou_threshold: float = 0.5
) -> Matches:
    """Give each object at most one detection of its class.

    The detections choose in the order of their scores; each takes the free object of its class
    that it overlaps most, where that is by `iou_threshold` at least; equal ones the later.
    """
    kept = _counted(predicted.scores, predicted.class_indices)
    boxes = np.asarray(predicted.boxes_xyxy_px, np.float64).reshape(-1, 4)[kept]
    labels = np.asarray(predicted.class_indices, np.int64)[kept]
    overlap = pairwise_iou(boxes, record.boxes_xyxy_px, record.is_crowd)  # N, G
    pairs = (overlap >= min(iou_threshold, 1 - 1e-10)) & (labels[:, None] == record.class_indices)
    objects = take_in_order(overlap, pairs & ~record.is_crowd)
    in_crowd = (objects == NO_OBJECT) & (pairs & record.is_crowd).any(axis=1)
    scores = np.asarray(predicted.scores, np.float64)[kept]
    return Matches(scores, labels, boxes, objects, in_crowd)


def take_in_order(overlap: NDArray[np.float64], pairs: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(N,) the column that each row takes, NO_OBJECT for none; earlier rows choose first.

    Args:
        overlap: (N, G) how well each fits.
        pairs: (N, G) what may be taken.
    """
    taken = np.full(len(pairs), NO_OBJECT, np.int64)
    free = np.ones(pairs.shape[1], bool)
    for row in np.flatnonzero(pairs.any(axis=1)):
        columns = np.flatnonzero(pairs[row] & free)
        if columns.size:
            best = columns[::-1][np.argmax(overlap[row, columns[::-1]])]  # of equals the last
            taken[row], free[best] = best, False
    return taken


def pairwise_iou(
    boxes_xyxy_px: NDArray[np.float64],
    truth_xyxy_px: NDArray[np.float32],
    is_crowd: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """(N, 4) and (G, 4) boxes to (N, G) IoU; for a crowd the share of the box that lies in it."""
    truth = np.asarray(truth_xyxy_px, np.float64).reshape(-1, 4)
    low = np.maximum(boxes_xyxy_px[:, None, :2], truth[None, :, :2])
    high = np.minimum(boxes_xyxy_px[:, None, 2:], truth[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)  # N, G
    own = (boxes_xyxy_px[:, 2:] - boxes_xyxy_px[:, :2]).prod(axis=1)[:, None]
    whole = (truth[:, 2:] - truth[:, :2]).prod(axis=1)[None, :]
    union = np.where(is_crowd, own, own + whole - shared)
    result = np.zeros(shared.shape)
    return np.asarray(np.divide(shared, union, out=result, where=union > 0))


def _counted(scores: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows that count, best score first: the best MAX_DETECTIONS of each class."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    if len(order) <= MAX_DETECTIONS:
        return order
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.searchsorted(labels[by_class], labels[by_class], side="left")
    place = np.arange(len(by_class)) - starts  # within its class
    rank = np.empty(len(order), np.int64)
    rank[by_class] = place
    return order[rank[order] < MAX_DETECTIONS]
