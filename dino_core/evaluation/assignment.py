"""Which detection finds which object, at one IoU: pycocotools' rules for one image, in numpy.

Precision-recall curves and confusion matrices need the pairs, which `COCOeval` does not return. The
numbers that people compare still come from that library (coco_metrics.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dino_core.data.records import ImageRecord
from dino_core.evaluation.coco_metrics import PredictedBoxes
from dino_core.processing.overlap import box_iou, share_inside

MAX_DETECTIONS = 100  # the best ones per class and image, as in COCO's evaluation
NO_OBJECT = -1


@dataclass(frozen=True)
class Assignment:
    """The N detections of one image that count, best score first, and what each finds.

    Attributes:
        scores: (N,) float64.
        class_indices: (N,) int64.
        boxes_xyxy_px: (N, 4) float64.
        objects: (N,) int64, row of the ground-truth box that each detection finds, or NO_OBJECT.
        in_crowd: (N,) bool, True where a detection finds nothing but lies in a crowd region of its
            class, so that it does not count as a mistake.
    """

    scores: NDArray[np.float64]
    class_indices: NDArray[np.int64]
    boxes_xyxy_px: NDArray[np.float64]
    objects: NDArray[np.int64]
    in_crowd: NDArray[np.bool_]


def assign_detections(
    record: ImageRecord, predicted: PredictedBoxes, iou_threshold: float = 0.5
) -> Assignment:
    """Give each object at most one detection of its class.

    The detections choose in the order of their scores. Each takes the free object of its class with
    which its IoU is greatest, if that is at least `iou_threshold`; on ties the later object.
    """
    kept = _counted(predicted.scores, predicted.class_indices)
    boxes = np.asarray(predicted.boxes_xyxy_px, np.float64).reshape(-1, 4)[kept]
    labels = np.asarray(predicted.class_indices, np.int64)[kept]
    # COCO compares a detection with a crowd region by the share of the detection inside it, because
    # the union with a region around many objects would make every IoU small.
    overlap = np.where(
        record.is_crowd,
        share_inside(boxes, record.boxes_xyxy_px),
        box_iou(boxes, record.boxes_xyxy_px),
    )  # (N, G)
    # pycocotools has the same limit, so that a threshold of 1 accepts equal boxes despite rounding.
    pairs = (overlap >= min(iou_threshold, 1 - 1e-10)) & (labels[:, None] == record.class_indices)
    # Real objects first. A crowd region is never used up: any number of detections may lie in it.
    objects = take_in_order(overlap, pairs & ~record.is_crowd)
    in_crowd = (objects == NO_OBJECT) & (pairs & record.is_crowd).any(axis=1)
    scores = np.asarray(predicted.scores, np.float64)[kept]
    return Assignment(scores, labels, boxes, objects, in_crowd)


def take_in_order(overlap: NDArray[np.float64], pairs: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Let each row take at most one column; earlier rows choose first.

    Args:
        overlap: (N, G) how well each pair fits.
        pairs: (N, G) True where a row may take a column.

    Returns:
        (N,) the column that each row takes, NO_OBJECT for none.
    """
    taken = np.full(len(pairs), NO_OBJECT, np.int64)
    free = np.ones(pairs.shape[1], bool)
    for row in np.flatnonzero(pairs.any(axis=1)):
        columns = np.flatnonzero(pairs[row] & free)
        if columns.size:
            # argmax returns the first maximum; COCOeval keeps the last, so the order is reversed.
            best = columns[::-1][np.argmax(overlap[row, columns[::-1]])]
            taken[row], free[best] = best, False
    return taken


def _counted(scores: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of the best MAX_DETECTIONS of each class, best score first."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    if len(order) <= MAX_DETECTIONS:
        return order
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.searchsorted(labels[by_class], labels[by_class], side="left")
    # `by_class` is sorted by class and, within a class, still by score.
    place = np.arange(len(by_class)) - starts  # rank within its class
    rank = np.empty(len(order), np.int64)
    rank[by_class] = place
    return order[rank[order] < MAX_DETECTIONS]
