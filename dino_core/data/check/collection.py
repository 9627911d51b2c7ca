"""The data set as a whole: ids, files listed twice, images without labels, classes, splits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dino_core.data.faults import FaultLog
from dino_core.data.formats.table import FORMATS
from dino_core.data.records import DatasetIndex, boxes_by_class
from dino_core.processing.image_files import IMAGE_SUFFIXES, upright_size

_RARE_BOXES = 10  # fewer than that of a class are too few to learn it
_RARE_SHARE = 1 / 50  # of the boxes of the most common class
_LONG_NAME, _LONGEST_NAME = 7, 60  # letters of a name in which one letter may be a slip
_SHORTEST_PLURAL = 4
_LEFT_OUT = (  # images that the reader left out are not "forgotten"
    "wrong-shape", "missing-label", "image-not-listed", "malformed-file", "labels-lost",
    "malformed-image-entry", "duplicate-id", "missing-split", "ambiguous-image",
)  # fmt: skip


def check_collection(dataset: DatasetIndex, log: FaultLog) -> None:
    """Check what no single image shows; `log` already holds the faults that the reader found."""
    _check_ids(dataset, log)
    _check_files(dataset, log)
    if not any(map(log.has, _LEFT_OUT)):  # the reader has reported images that are in no split
        _check_unlisted(dataset, log)
    _check_empty(dataset, log)
    _check_classes(dataset, log)
    _check_class_names(dataset.classes.names, log)


def class_counts(dataset: DatasetIndex) -> dict[str, NDArray[np.int64]]:
    """Split name to (C,) boxes of each class, crowds left out."""
    classes = len(dataset.classes)
    return {split: boxes_by_class(records, classes) for split, records in dataset.splits.items()}


def _check_ids(dataset: DatasetIndex, log: FaultLog) -> None:
    for split, records in dataset.splits.items():
        times = Counter(record.image_id for record in records)
        for image_id in (i for i, count in times.items() if count > 1):
            paths = tuple(r.path for r in records if r.image_id == image_id)
            log.add("duplicate-id", f"{split}: id {image_id} of {_list(paths)}", paths)


def _check_files(dataset: DatasetIndex, log: FaultLog) -> None:
    places: dict[Path, Counter[str]] = {}
    for split, records in dataset.splits.items():
        for record in records:
            places.setdefault(record.path, Counter())[split] += 1
    for path, splits in places.items():
        if splits.total() > 1:
            where = ", ".join(f"{count} times in {split}" for split, count in splits.items())
            log.add("image-listed-twice", f"{path}: {where}", (path,))


def _check_unlisted(dataset: DatasetIndex, log: FaultLog) -> None:
    """Images that lie beside those of the data set; those that faults name are not counted."""
    listed = {record.path for record in dataset.records}
    known = listed.union(*(fault.paths for fault in dataset.faults))
    for folder in sorted({path.parent for path in listed}):
        for path in sorted(folder.iterdir()):
            is_image = path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
            if is_image and path not in known and upright_size(path) is not None:
                log.add("image-not-listed", str(path), (path,))


def _check_empty(dataset: DatasetIndex, log: FaultLog) -> None:
    known = FORMATS.get(dataset.format)
    label_file = known.label_file if known is not None else None
    for split, records in dataset.splits.items():
        if not any((~record.is_crowd).any() for record in records) and split != "test":
            log.add(
                "no-boxes",
                f"{split}: {len(records)} image{'' if len(records) == 1 else 's'}, no boxes",
            )
            continue
        for record in records:
            if len(record.boxes_xyxy_px):
                continue
            labels = label_file(record.path) if label_file is not None else None
            if labels is not None and not labels.is_file():
                log.add("missing-label", f"{record.path}: no {labels}", (record.path,))
            else:
                log.add("image-without-boxes", f"{record.path}", (record.path,))


def _check_classes(dataset: DatasetIndex, log: FaultLog) -> None:
    counts = class_counts(dataset)
    split = "train" if "train" in counts else next(iter(counts), "")
    if not split or not counts[split].any():
        return  # reported as a split without boxes
    learned = counts[split]
    enough = max(_RARE_BOXES, _RARE_SHARE * int(learned.max()))
    names = dataset.classes.names
    for index in np.argsort(learned, kind="stable").tolist():
        count = int(learned[index])
        if not names[index]:
            continue
        if count == 0:
            elsewhere = _elsewhere(counts, split, index)
            log.add("class-without-boxes", f"{names[index]}: no boxes in {split}{elsewhere}")
        elif count < enough:
            total = int(learned.sum())
            log.add("class-imbalance", f"{names[index]}: {count} of {total} boxes in {split}")


def _check_class_names(names: Sequence[str], log: FaultLog) -> None:
    """Record names that differ in case, punctuation, a plural or, if long, in one letter."""
    keys = {name: re.sub(r"[\W_]", "", name.casefold()) for name in names if name}
    by_key: dict[str, list[str]] = {}
    for name, key in keys.items():
        if not key:
            continue
        near = {key, *_without_one(key)}
        if len(key) >= _SHORTEST_PLURAL:
            near |= {key.removesuffix("s"), key.removesuffix("es")}
        first = next((by_key[k][0] for k in sorted(near) if k in by_key), None)
        if first is not None and _may_be_one(key, keys[first]):
            log.add("similar-classes", f"{first} and {name}")
        for k in near:
            by_key.setdefault(k, []).append(name)


def _without_one(key: str) -> list[str]:
    """A long word without each of its letters: two that share one differ in one letter."""
    if len(key) < _LONG_NAME or len(key) > _LONGEST_NAME:
        return []
    return [key[:i] + key[i + 1 :] for i in range(len(key))]


def _may_be_one(key: str, other: str) -> bool:
    """Names that end in or hold other numbers ("lane1", "lane2") are meant to differ."""
    return re.findall(r"\d+", key) == re.findall(r"\d+", other)


def _elsewhere(counts: Mapping[str, NDArray[np.int64]], split: str, index: int) -> str:
    others = [
        f"{count[index]} in {s}" for s, count in counts.items() if s != split and count[index]
    ]
    return f", but {', '.join(others)}" if others else ""


def _list(paths: tuple[Path, ...]) -> str:
    return ", ".join(map(str, paths))
