"""Overlap of boxes in numpy: the one IoU of evaluation, data checks and export verification.

Coordinates are converted to float64, as in pycocotools, so that comparisons with a threshold do not
depend on the rounding of float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def box_iou(boxes_xyxy: ArrayLike, others_xyxy: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of every pair of boxes.

    Args:
        boxes_xyxy: (N, 4) corner boxes, in any unit.
        others_xyxy: (M, 4) corner boxes, in the same unit.

    Returns:
        (N, M) float64 in [0, 1]; 0 where both boxes have no area.
    """
    boxes, others = _corners(boxes_xyxy), _corners(others_xyxy)
    shared = _intersection(boxes, others)
    return _ratio(shared, _area(boxes)[:, None] + _area(others)[None, :] - shared)


def share_inside(boxes_xyxy: ArrayLike, regions_xyxy: ArrayLike) -> NDArray[np.float64]:
    """(N, M) share of the area of each box that lies inside each region.

    This is what COCO's evaluation uses in place of the IoU for crowd regions.

    Args:
        boxes_xyxy: (N, 4) corner boxes, in any unit.
        regions_xyxy: (M, 4) corner boxes, in the same unit.

    Returns:
        (N, M) float64 in [0, 1]; 0 for boxes without area.
    """
    boxes, regions = _corners(boxes_xyxy), _corners(regions_xyxy)
    shared = _intersection(boxes, regions)
    return _ratio(shared, np.broadcast_to(_area(boxes)[:, None], shared.shape))


def _corners(boxes_xyxy: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 4) -> (N,)."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))


def _intersection(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 4), (M, 4) -> (N, M) area of the intersections."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.asarray(np.clip(high - low, 0, None).prod(axis=2))


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0))
