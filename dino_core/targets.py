"""The ground truth of one image as the model and its losses see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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
        """The same target without its boxes."""
        return Target(self.labels[:0], self.boxes_cxcywh[:0])


def to_device(targets: Sequence[Target], device: torch.device) -> list[Target]:
    """The targets of a batch on another device, moved by two copies instead of two per image."""
    counts = [len(target.labels) for target in targets]
    labels = torch.cat([target.labels for target in targets]).to(device)
    boxes = torch.cat([target.boxes_cxcywh for target in targets]).to(device)
    parts = torch.split(labels, counts), torch.split(boxes, counts)
    return [Target(*each) for each in zip(*parts, strict=True)]


def image_and_slot(targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
    """The image of each box of a batch, and the box's index among those of its image.

    Both are computed on the CPU, which costs a GPU one copy instead of one kernel per image.

    Returns: Two tensors (N,) int64 on the device of the targets, boxes in the order of the images.
    """
    counts = torch.tensor([len(target.labels) for target in targets])
    image = torch.arange(len(counts)).repeat_interleave(counts)
    slot = torch.arange(len(image)) - (counts.cumsum(0) - counts)[image]
    placed = torch.stack([image, slot]).to(targets[0].labels.device)
    return placed[0], placed[1]
