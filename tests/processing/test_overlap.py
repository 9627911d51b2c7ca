"""Overlaps worked out by hand, and against pycocotools with crowds."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

from dino_core.processing.overlap import box_iou, share_inside

A, B = (0, 0, 100, 100), (200, 200, 300, 300)
POINT = (10, 10, 10, 10)


def test_iou_by_hand() -> None:
    found = box_iou([A, POINT], [(0, 0, 100, 50), (50, 0, 150, 100), B])
    np.testing.assert_allclose(found, [[0.5, 1 / 3, 0.0], [0.0, 0.0, 0.0]], atol=1e-12)
    assert box_iou([POINT], [POINT]).tolist() == [[0.0]]  # no area on either side


def test_share_by_hand() -> None:
    region = (50, 0, 1000, 1000)
    assert share_inside([A, B, POINT], [region]).tolist() == [[0.5], [1.0], [0.0]]


def test_no_boxes() -> None:
    none = np.zeros((0, 4), np.float32)
    assert box_iou(none, [A]).shape == (0, 1)
    assert box_iou([A], none).shape == (1, 0)
    assert share_inside(none, none).shape == (0, 0)


def test_both_equal_pycocotools() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 60, (40, 2))], axis=1)
    first, second = boxes[:25], boxes[25:]
    xywh = [np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1) for b in (first, second)]
    for function, crowd in ((box_iou, 0), (share_inside, 1)):
        expected = coco_mask.iou(*xywh, [crowd] * len(second))
        np.testing.assert_allclose(function(first, second), expected, atol=1e-12)
