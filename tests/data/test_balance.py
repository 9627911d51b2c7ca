"""Repeat factors worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dino_core.data.balance import repeat_rare
from dino_core.data.records import ImageRecord


def record(image_id: int, classes: list[int], crowd: bool = False) -> ImageRecord:
    count = len(classes)
    return ImageRecord(
        image_id=image_id,
        path=Path("a.jpg"),
        width=10,
        height=10,
        boxes_xyxy_px=np.zeros((count, 4), np.float32),
        class_indices=np.array(classes, np.int64),
        is_crowd=np.full(count, crowd),
        areas=np.zeros(count, np.float32),
    )


def test_rare_classes_are_repeated() -> None:
    # class 0 in 15 of 16 images, class 1 in one: sqrt(0.25 / (1 / 16)) = 2
    records = [record(i, [0]) for i in range(15)] + [record(15, [1])]
    repeated = [r.image_id for r in repeat_rare(records, 2, 0.25)]
    assert repeated == [*range(15), 15, 15]


def test_fractions_are_rounded_by_chance_and_seed() -> None:
    # class 1 in 4 of 100 images: sqrt(0.09 / 0.04) = 1.5 times each
    records = [record(i, [0, 1] if i < 4 else [0]) for i in range(100)]
    totals = [len(repeat_rare(records, 2, 0.09, seed)) for seed in range(200)]
    assert set(totals) <= set(range(100, 105))
    assert abs(np.mean(totals) - 102) < 0.3  # four times the standard error
    assert repeat_rare(records, 2, 0.09, 5) == repeat_rare(records, 2, 0.09, 5)


def test_crowds_and_empty_images_count_once() -> None:
    records = [record(0, []), record(1, [1], crowd=True), *(record(i, [0]) for i in range(2, 9))]
    assert [r.image_id for r in repeat_rare(records, 2, 0.5)] == list(range(9))
