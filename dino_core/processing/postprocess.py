"""From raw logits and boxes to detections, without NMS (ALGORITHM 29), for every runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Decoded:
    """N objects of one image, best score first.

    Attributes:
        boxes_xyxy_px: (N, 4) float32 pixels of the original image.
        scores: (N,) float32 in [0, 1].
        class_indices: (N,) int64 columns of the logits.
    """

    boxes_xyxy_px: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_indices: NDArray[np.int64]


def decode(
    logits: NDArray[np.float32],
    boxes_cxcywh: NDArray[np.float32],
    size_hw: tuple[int, int],
    *,
    num_select: int = 300,
    threshold: float = 0.0,
    allowed_classes: Sequence[int] | None = None,
) -> Decoded:
    """Return the best `num_select` (query, class) pairs, with boxes clipped to the image.

    One query may appear with several classes. Equal scores are ordered by query, then class.

    Args:
        logits: (Q, C) raw class scores.
        boxes_cxcywh: (Q, 4) boxes normalized to the image.
        size_hw: Height and width of the original image in pixels.
        num_select: Maximum objects returned.
        threshold: Lowest score that is kept.
        allowed_classes: Class indices to choose from; all where None.
    """
    columns = np.arange(logits.shape[1]) if allowed_classes is None else np.array(allowed_classes)
    columns = columns.astype(np.int64)
    scores = _sigmoid(logits[:, columns].astype(np.float32)).reshape(-1)
    candidates = np.flatnonzero(scores >= threshold)
    if candidates.size > num_select > 0:
        kth = np.partition(scores[candidates], -num_select)[-num_select]
        candidates = candidates[scores[candidates] >= kth]
    order = candidates[np.argsort(-scores[candidates], kind="stable")][:num_select]
    query, column = np.divmod(order, max(1, columns.size))
    boxes = _to_pixels(boxes_cxcywh[query].astype(np.float32), size_hw)
    limit = np.array([size_hw[1], size_hw[0]] * 2, np.float32)
    boxes = np.clip(boxes, np.float32(0), limit)
    return Decoded(boxes, scores[order], columns[column])


def _sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    small = np.exp(-np.abs(values))  # never overflows
    result = np.where(values >= 0, 1 / (1 + small), small / (1 + small))
    return np.asarray(result, dtype=np.float32)


def _to_pixels(boxes_cxcywh: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """(N, 4) normalized cxcywh to (N, 4) xyxy pixels."""
    center, half = boxes_cxcywh[:, :2], np.float32(0.5) * boxes_cxcywh[:, 2:]
    scale = np.array([size_hw[1], size_hw[0]] * 2, np.float32)
    return np.concatenate([center - half, center + half], axis=1) * scale
