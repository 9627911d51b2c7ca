"""A folder or file as a data set: which form it is, and a validation split if it has none."""

from __future__ import annotations

from pathlib import Path

from dino_core.data.formats.coco import read_coco
from dino_core.data.records import DatasetIndex


def load_dataset(
    path: str | Path, format: str | None = None, val_split: float = 0.1, seed: int = 0
) -> DatasetIndex:
    return read_coco(Path(path))
