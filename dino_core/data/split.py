"""A stratified validation split for a data set that has none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dino_core.data.records import ImageRecord
from dino_core.data.seeding import generator
from dino_core.errors import DataError


def stratified_split(
    records: Sequence[ImageRecord], fraction: float, num_classes: int, seed: int
) -> tuple[tuple[ImageRecord, ...], tuple[ImageRecord, ...]]:
    """Divide records into a training and a validation list, with each class's share in both.

    This is iterative stratification (Sechidis et al., 2011): the images of the rarest class that is
    not divided yet are dealt first, each to the list that lacks more boxes of that class. Images
    without boxes are dealt last, in proportion.

    Args:
        records: At least two images.
        fraction: Share of the images, and of each class's boxes, for validation.
        num_classes: Number of classes of the data set.
        seed: Random seed of the shuffle before dealing.

    Returns: Training and validation records in their original order; neither is empty.
    Raises: DataError if there are fewer than two records.
    """
    if len(records) < 2:
        raise DataError(f"{len(records)} images cannot be divided into train and val", "add images")
    counts = np.stack([record.boxes_by_class(num_classes) for record in records])
    wanted_val = min(max(1, round(len(records) * fraction)), len(records) - 1)
    shares = np.array([len(records) - wanted_val, wanted_val]) / len(records)
    lacking = shares[:, None] * counts.sum(axis=0)  # (2, C) boxes that each list still lacks
    room = np.array([len(records) - wanted_val, wanted_val])
    side = np.full(len(records), -1)
    shuffled = generator(seed).permutation(len(records))
    while (left := shuffled[side[shuffled] < 0]).size:
        remaining = (counts[left] > 0).sum(axis=0)
        if remaining.any():
            rarest = int(np.where(remaining > 0, remaining, np.iinfo(np.int64).max).argmin())
            dealt = left[counts[left, rarest] > 0]
        else:
            rarest, dealt = None, left
        for i in dealt:
            need = room if rarest is None else lacking[:, rarest]
            chosen = int(need[1] > need[0] if rarest is not None else need[1] > 0)
            if room[chosen] == 0:
                chosen = 1 - chosen
            side[i] = chosen
            room[chosen] -= 1
            lacking[chosen] -= counts[i]
    return (
        tuple(r for r, s in zip(records, side, strict=True) if s == 0),
        tuple(r for r, s in zip(records, side, strict=True) if s == 1),
    )
