"""From the network's raw output to detections, without NMS (docs/ALGORITHM.md, 29).

The only decoding in the package: torch and ONNX models both end in raw logits and boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Decoded:
    """The N detections of one image, best score first.

    Attributes:
        boxes_xyxy_px: (N, 4) float32 pixels of the original image.
        scores: (N,) float32 in [0, 1].
        class_indices: (N,) int64, columns of the logits.
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
    """The best `num_select` pairs of a query and a class, with boxes clipped to the image.

    One query may appear several times, with different classes: DETR-like models are trained with
    one sigmoid per class, and the published code selects among all Q * C scores. Equal scores are
    ordered by query, then by class.

    Args:
        logits: (Q, C) raw class scores.
        boxes_cxcywh: (Q, 4), normalized to the image.
        size_hw: Height and width of the original image.
        num_select: Maximum number of detections.
        threshold: Minimum score.
        allowed_classes: Class indices to choose from; None allows all.
    """
    # Chosen before the selection, so that other classes do not use up the places.
    columns = np.arange(logits.shape[1]) if allowed_classes is None else np.array(allowed_classes)
    columns = columns.astype(np.int64)
    scores = _sigmoid(logits[:, columns].astype(np.float32)).reshape(-1)
    candidates = np.flatnonzero(scores >= threshold)
    # A stable sort of all Q * C scores would do, but costs more than the rest of this function. The
    # partial sort first drops what cannot be among the best; ties with the last place stay in.
    if candidates.size > num_select > 0:
        kth = np.partition(scores[candidates], -num_select)[-num_select]
        candidates = candidates[scores[candidates] >= kth]
    order = candidates[np.argsort(-scores[candidates], kind="stable")][:num_select]
    # The scores were flattened with the classes as the inner axis (ALGORITHM 29).
    query, column = np.divmod(order, max(1, columns.size))
    boxes = to_pixels(boxes_cxcywh[query].astype(np.float32), size_hw)
    limit = np.array([size_hw[1], size_hw[0]] * 2, np.float32)
    boxes = np.clip(boxes, np.float32(0), limit)
    return Decoded(boxes, scores[order], columns[column])


def _sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    small = np.exp(-np.abs(values))  # at most 1, so that it cannot overflow
    result = np.where(values >= 0, 1 / (1 + small), small / (1 + small))
    return np.asarray(result, dtype=np.float32)


def to_pixels(boxes_cxcywh: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """(N, 4) normalized cxcywh to (N, 4) xyxy pixels."""
    center, half = boxes_cxcywh[:, :2], np.float32(0.5) * boxes_cxcywh[:, 2:]
    scale = np.array([size_hw[1], size_hw[0]] * 2, np.float32)
    return np.concatenate([center - half, center + half], axis=1) * scale
