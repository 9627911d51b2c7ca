"""The data set as a whole: ids, files listed twice, images without labels, classes and splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dino_core.data.check.findings import Collector, Example
from dino_core.data.formats.yolo_files import label_path
from dino_core.data.records import DatasetIndex
from dino_core.processing.image_files import IMAGE_SUFFIXES, upright_size

_RARE_BOXES = 10  # fewer than that of a class are too few to learn it
_RARE_SHARE = 1 / 50  # of the boxes of the most common class
_LEFT_OUT = ("wrong-shape", "missing-label", "image-not-listed")


def check_collection(dataset: DatasetIndex, found: Collector) -> None:
    """Look at what no single image can tell; `found` holds what the reader told."""
    _check_ids(dataset, found)
    _check_files(dataset, found)
    if not any(map(found.has, _LEFT_OUT)):  # the reader told of images that are in no split
        _check_unlisted(dataset, found)
    _check_empty(dataset, found)
    _check_classes(dataset, found)


def class_counts(dataset: DatasetIndex) -> dict[str, NDArray[np.int64]]:
    """Split name to (C,) boxes of each class, crowds left out."""
    counts = {}
    for split, records in dataset.splits.items():
        total = np.zeros(len(dataset.classes), np.int64)
        for record in records:
            total += np.bincount(
                record.class_indices[~record.is_crowd], minlength=len(dataset.classes)
            )
        counts[split] = total
    return counts


def _check_ids(dataset: DatasetIndex, found: Collector) -> None:
    for split, records in dataset.splits.items():
        times = Counter(record.image_id for record in records)
        for image_id in (i for i, count in times.items() if count > 1):
            paths = tuple(r.path for r in records if r.image_id == image_id)
            found.add("duplicate-id", Example(f"{split}: id {image_id} of {_list(paths)}", paths))


def _check_files(dataset: DatasetIndex, found: Collector) -> None:
    places: dict[Path, Counter[str]] = {}
    for split, records in dataset.splits.items():
        for record in records:
            places.setdefault(record.path, Counter())[split] += 1
    for path, splits in places.items():
        if splits.total() > 1:
            where = ", ".join(f"{count} times in {split}" for split, count in splits.items())
            found.add("image-listed-twice", Example(f"{path}: {where}", (path,)))


def _check_unlisted(dataset: DatasetIndex, found: Collector) -> None:
    """Images beside those of the data set; files that are no images the reader has told."""
    listed = {record.path for records in dataset.splits.values() for record in records}
    for folder in sorted({path.parent for path in listed}):
        for path in sorted(folder.iterdir()):
            is_image = path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
            if is_image and path not in listed and upright_size(path) is not None:
                found.add("image-not-listed", Example(str(path), (path,)))


def _check_empty(dataset: DatasetIndex, found: Collector) -> None:
    for split, records in dataset.splits.items():
        if not any((~record.is_crowd).any() for record in records) and split != "test":
            found.add("no-boxes", Example(f"{split}: {len(records)} images, no boxes"))
            continue
        for record in records:
            if len(record.boxes_xyxy_px):
                continue
            labels = label_path(record.path) if dataset.format == "yolo" else None
            if labels is not None and not labels.is_file():
                found.add("missing-label", Example(f"{record.path}: no {labels}", (record.path,)))
            else:
                found.add("image-without-boxes", Example(f"{record.path}", (record.path,)))


def _check_classes(dataset: DatasetIndex, found: Collector) -> None:
    counts = class_counts(dataset)
    split = "train" if "train" in counts else next(iter(counts), "")
    if not split or not counts[split].any():
        return  # told as a split without boxes
    learnt = counts[split]
    enough = max(_RARE_BOXES, _RARE_SHARE * int(learnt.max()))
    names = dataset.classes.names
    for index in np.argsort(learnt, kind="stable").tolist():
        count = int(learnt[index])
        if not names[index]:
            continue
        if count == 0:
            example = Example(
                f"{names[index]}: no boxes in {split}{_elsewhere(counts, split, index)}"
            )
            found.add("class-without-boxes", example)
        elif count < enough:
            example = Example(f"{names[index]}: {count} of {int(learnt.sum())} boxes in {split}")
            found.add("class-imbalance", example)


def _elsewhere(counts: Mapping[str, NDArray[np.int64]], split: str, index: int) -> str:
    others = [
        f"{count[index]} in {s}" for s, count in counts.items() if s != split and count[index]
    ]
    return f", but {', '.join(others)}" if others else ""


def _list(paths: tuple[Path, ...]) -> str:
    return ", ".join(map(str, paths))
