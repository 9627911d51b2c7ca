"""Labeled images and detections, written by hand or drawn at random, for tests of metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dino_core.data.records import ImageRecord
from dino_core.processing.postprocess import Decoded

Box = tuple[float, float, float, float]


def truth(*objects: tuple[int, Box], crowd: tuple[bool, ...] | None = None) -> ImageRecord:
    """A 640x480 image with (class, corner box) objects."""
    boxes = np.array([box for _, box in objects], np.float32).reshape(-1, 4)
    return ImageRecord(
        image_id=1,
        path=Path("1.jpg"),
        width=640,
        height=480,
        boxes_xyxy_px=boxes,
        class_indices=np.array([c for c, _ in objects], np.int64),
        is_crowd=np.array(crowd or [False] * len(objects), bool),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
    )


def found(*objects: tuple[int, float, Box]) -> Decoded:
    """Detections as (class, score, corner box)."""
    return Decoded(
        np.array([box for *_, box in objects], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in objects], np.float32),
        np.array([c for c, *_ in objects], np.int64),
    )


def random_case(seed: int, classes: int = 4) -> tuple[list[ImageRecord], list[Decoded]]:
    """Crowds, equal scores, shifted boxes, strays, and over 100 boxes of one class per image."""
    rng = np.random.default_rng(seed)
    records, predictions = [], []
    for number in range(25):
        count = int(rng.integers(0, 9))
        corner, side = rng.uniform(0, 300, (count, 2)), rng.uniform(10, 200, (count, 2))
        boxes = np.concatenate([corner, corner + side], axis=1)
        labels = rng.integers(0, classes - 1, count)  # the last class is never there
        crowd = rng.random(count) < 0.15
        records.append(
            truth(
                *((int(c), tuple(b)) for c, b in zip(labels, boxes, strict=True)),
                crowd=tuple(crowd.tolist()),
            )
        )
        moved = boxes + rng.normal(0, 0.12, boxes.shape) * np.tile(side, 2)
        strays = 450 if number == 0 else int(rng.integers(0, 6))
        stray = rng.uniform(0, 300, (strays, 2))
        stray = np.concatenate([stray, stray + rng.uniform(10, 200, (strays, 2))], axis=1)
        every = np.concatenate([moved, stray]).astype(np.float32)
        every[:, 2:] = np.maximum(every[:, 2:], every[:, :2] + 1)
        guess = np.concatenate([labels, rng.integers(0, classes, strays)])
        scores = rng.choice(np.linspace(0.05, 0.95, 30), len(every)).astype(np.float32)
        predictions.append(Decoded(every, scores, guess))
    return records, predictions
