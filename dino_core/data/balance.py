"""Repetition of images with rare classes: LVIS's repeat factor sampling (arXiv 1908.03195, 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dino_core.data.records import ImageRecord


def repeat_rare(
    records: Sequence[ImageRecord], num_classes: int, threshold: float, seed: int = 0
) -> tuple[ImageRecord, ...]:
    """Repeat each image max(1, sqrt(threshold / f)) times; f is its rarest class's image share.

    Args:
        records: The images of a training split.
        num_classes: Number of classes of the data set.
        threshold: Classes that are in a smaller share of the images are repeated.
        seed: Random seed; decides which fractional numbers of repeats are rounded up.

    Returns: The records in order, repeats next to each other.
    """
    present = [np.unique(r.class_indices[~r.is_crowd]) for r in records]
    images_of = np.zeros(num_classes)
    for classes in present:
        images_of[classes] += 1
    share = np.maximum(images_of, 1) / max(len(records), 1)
    factor = np.maximum(1.0, np.sqrt(threshold / share))
    rng = np.random.default_rng(seed)
    repeats = [
        int(np.floor((factor[classes].max() if len(classes) else 1.0) + rng.random()))
        for classes in present
    ]
    return tuple(
        r for record, count in zip(records, repeats, strict=True) for r in [record] * count
    )
