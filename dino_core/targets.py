"""The ground truth of one image as the model and its losses see it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Target:
    """N boxes of one image.

    Attributes:
        labels: (N,) int64 contiguous class indices.
        boxes_cxcywh: (N, 4) float32 in [0, 1], relative to the image without padding.
    """

    labels: Tensor
    boxes_cxcywh: Tensor

    def empty(self) -> Target:
        """None of the boxes."""
        return Target(self.labels[:0], self.boxes_cxcywh[:0])

    def to(self, device: str) -> Target:
        return Target(self.labels.to(device), self.boxes_cxcywh.to(device))
