"""Copy-paste for boxes: parts of another image pasted onto free places (after arXiv 2012.07177).

It differs in that there are no masks: the whole content of a box is pasted, half of the time with
soft edges, so that a seam does not reveal an object (arXiv 1708.01642, 4.2). Rare classes are
pasted more often than they occur: each class by the square root of its number of boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_core.data.augment.scene import Scene, SizeHW, as_array, crop, make_scene, resize
from dino_core.data.records import ImageRecord

_TRIES = 10  # random places that are tried for each part
_SOFT = 0.08  # width of a soft edge, as a share of the part's short side


@dataclass(frozen=True)
class Donors:
    """All boxes that can be pasted.

    Attributes:
        records: (N,) int64, index of each box's record.
        boxes: (N,) int64, index of the box among those of its record that are no crowds.
        cumulative: (N,) float64, cumulative probability of being chosen; the last one is 1.
    """

    records: NDArray[np.int64]
    boxes: NDArray[np.int64]
    cumulative: NDArray[np.float64]

    def choose(self, rng: np.random.Generator) -> tuple[int, int]:
        """The indices of a random record and of a box in it, by one draw."""
        place = int(np.searchsorted(self.cumulative, rng.random(), side="right"))
        # Rounding can leave the last cumulative value slightly below 1.
        place = min(place, len(self.cumulative) - 1)
        return int(self.records[place]), int(self.boxes[place])


def find_donors(records: Sequence[ImageRecord]) -> Donors | None:
    """The boxes of a split, with weights 1 / sqrt(boxes of the class); None if it has no boxes."""
    classes = [record.class_indices[~record.is_crowd] for record in records]
    counts = [len(c) for c in classes]
    if not sum(counts):
        return None
    joined = np.concatenate(classes)
    chance = 1 / np.sqrt(np.bincount(joined)[joined])  # (N,)
    numbers = [np.arange(count) for count in counts]
    return Donors(
        np.repeat(np.arange(len(counts)), counts),
        np.concatenate(numbers).astype(np.int64),
        np.cumsum(chance / chance.sum()),
    )


@dataclass(frozen=True)
class Paste:
    """Pastes parts of one image onto another, where they hide little.

    Attributes:
        most: Largest number of parts.
        low: Smallest factor of a part's size relative to its image.
        high: Largest factor of a part's size relative to its image.
        max_side: A part has at most this share of the image's height and width.
        max_covered: Largest share of the area of any box, original or pasted, that may be hidden.
        min_visible: Another object within a part is labeled if more than this share of its area
            is visible.
    """

    most: int = 3
    low: float = 0.7
    high: float = 1.4
    max_side: float = 0.5
    max_covered: float = 0.3
    min_visible: float = 0.25

    def __call__(self, scene: Scene, donor: Scene, box: int, rng: np.random.Generator) -> Scene:
        """The scene with box number `box` of the donor, and perhaps others, where there is room."""
        # The first box was chosen by its class; the others come along as the image is loaded
        # anyway.
        others = [int(i) for i in rng.permutation(len(donor.labels)) if i != box]
        chosen = [box, *others][: int(rng.integers(1, self.most + 1))]
        # The array may be the decoded image that another part of the sample still uses.
        pixels = as_array(scene.image).copy()
        boxes, labels = scene.boxes.as_subclass(Tensor), scene.labels
        # The share of each box that parts hide so far. Sums are an upper limit, as parts may
        # overlap.
        covered = np.zeros(len(labels))
        for number in chosen:
            part = self._part(donor, number, scene.size_hw, rng)
            place = None if part is None else self._place(part, boxes.numpy(), covered, pixels, rng)
            if part is None or place is None:
                continue
            top, left, hidden = place
            _lay(pixels, as_array(part.image), top, left, soft=bool(rng.random() < 0.5))
            moved = part.boxes.as_subclass(Tensor) + torch.tensor([left, top, left, top])
            boxes, labels = torch.cat([boxes, moved]), torch.cat([labels, part.labels])
            # Pasted objects are protected from later parts like the original ones.
            covered = np.concatenate([covered + hidden, np.zeros(len(moved))])
        return make_scene(pixels, boxes, labels)

    def _part(
        self, donor: Scene, number: int, onto_hw: SizeHW, rng: np.random.Generator
    ) -> Scene | None:
        """The content of a box at its new size; None if a side would have under 4 pixels."""
        factor = rng.uniform(self.low, self.high) * max(onto_hw) / max(donor.size_hw)
        x1, y1, x2, y2 = (round(v) for v in donor.boxes[number].tolist())
        x1, y1 = max(0, x1), max(0, y1)
        height, width = min(y2, donor.size_hw[0]) - y1, min(x2, donor.size_hw[1]) - x1
        if height < 1 or width < 1:
            return None
        fit = (self.max_side * onto_hw[0] / height, self.max_side * onto_hw[1] / width)
        factor = min(factor, *fit)
        size = (round(height * factor), round(width * factor))
        if min(size) < 4:
            return None
        return resize(crop(donor, y1, x1, (height, width), self.min_visible), size)

    def _place(
        self,
        part: Scene,
        boxes: NDArray[np.float32],
        covered: NDArray[np.float64],
        pixels: NDArray[np.uint8],
        rng: np.random.Generator,
    ) -> tuple[int, int, NDArray[np.float64]] | None:
        """Top, left and the share of each box that the part hides; None if no place was found."""
        height, width = part.size_hw
        areas = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1e-6)
        for _ in range(_TRIES):
            top = int(rng.integers(pixels.shape[0] - height + 1))
            left = int(rng.integers(pixels.shape[1] - width + 1))
            wide = np.minimum(boxes[:, 2], left + width) - np.maximum(boxes[:, 0], left)
            high = np.minimum(boxes[:, 3], top + height) - np.maximum(boxes[:, 1], top)
            hidden = np.maximum(wide, 0) * np.maximum(high, 0) / areas
            if bool((covered + hidden <= self.max_covered).all()):
                return top, left, hidden.astype(np.float64)
        return None


def _lay(
    pixels: NDArray[np.uint8], part: NDArray[np.uint8], top: int, left: int, soft: bool
) -> None:
    """Write a part's pixels in their place; with `soft`, the part fades in from its edges."""
    height, width = part.shape[:2]
    target = pixels[top : top + height, left : left + width]
    if not soft:
        target[:] = part
        return
    rows, columns = (np.minimum(np.arange(s), np.arange(s)[::-1]) + 1 for s in (height, width))
    edge = 1 + _SOFT * min(height, width)
    # The distance to the nearest edge, as a share of the soft border.
    weight = np.minimum(rows[:, None], columns[None]).astype(np.float32) / np.float32(edge)
    weight = np.minimum(weight, 1)
    target[:] = cv2.blendLinear(part, np.ascontiguousarray(target), weight, 1 - weight)
