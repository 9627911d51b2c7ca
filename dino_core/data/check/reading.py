"""What a reader repaired or left out, told by a `DatasetIndex` in sentences, as findings.

The readers count every repair and remember the first place of each kind (`formats/repairs.py`); the
image at fault is looked up from that place, to show it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from dino_core.data.check.findings import Collector, Example, MarkedBox
from dino_core.data.records import DatasetIndex, ImageRecord

_SENTENCE = re.compile(r"(\d+) (.+?) \((?:first: )?(.+)\)", re.DOTALL)
_KIND_OF_WORDS = {  # in a reader's sentence: kind of finding; the first that fits
    "not a readable image": "unreadable-image",
    "not readable images": "unreadable-image",
    "image file is missing": "missing-image",
    "image files are missing": "missing-image",
    "the stated shape": "wrong-shape",
    "another size than stated": "other-size",
    "no area inside": "box-degenerate",
    "outside its image": "box-outside",
    "outside their images": "box-outside",
    "to no image": "label-without-image",
    "an id that another": "duplicate-annotation-id",
    "ids that others": "duplicate-annotation-id",
    "no annotation file": "missing-label",
    "in no list of images": "image-not-listed",
    "outline": "outline-label",
}
_CORNERS = re.compile(r"corners (\S+), (\S+), (\S+), (\S+) in an image of (\d+)x(\d+)$")
_STATED = re.compile(r" stated, (.+) is \d+x\d+ upright$", re.DOTALL)
_FILE = re.compile(r"(.+?)(?: line \d+|: )", re.DOTALL)
_ROUNDING_PX = 0.1  # of corners printed with six digits


def check_reading(dataset: DatasetIndex, found: Collector) -> None:
    """Turn the warnings of a data set into findings; what fits no kind stays a remark."""
    for sentence in dataset.warnings:
        parts = _SENTENCE.fullmatch(sentence)
        kind = parts and next((k for words, k in _KIND_OF_WORDS.items() if words in parts[2]), None)
        if parts and kind:
            count = int(parts[1])
            example = _example(kind, parts[3], dataset)
            if count > 1:
                example = replace(example, detail=f"{example.detail} (the first of {count:,})")
            found.add(kind, example, count)
        else:
            found.remark(sentence)


def _example(kind: str, place: str, dataset: DatasetIndex) -> Example:
    if kind == "unreadable-image":
        return Example(f"{place}: left out by the reader", (Path(place),))
    stated = _STATED.search(place)
    if stated:
        return Example(place, (Path(stated[1]),))
    corners = _CORNERS.search(place)
    if corners is None:
        return Example(place)
    x1, y1, x2, y2 = map(float, corners.groups()[:4])
    size_wh = (int(corners[5]), int(corners[6]))
    records = [r for s in dataset.splits.values() for r in s if (r.width, r.height) == size_wh]
    box = (x1, y1, x2, y2)
    record = _by_label_file(place, records) or _by_box(box, records)
    if record is None:
        return Example(place)
    marked = (MarkedBox(box, "as labelled"),)
    return Example(f"{record.path}: {place}", (record.path,), marked)


def _by_label_file(place: str, records: list[ImageRecord]) -> ImageRecord | None:
    """The image of a label file of its own, by its name; None where that is not unique."""
    file = _FILE.match(place)
    stem = Path(file[1]).stem if file else ""
    named = [record for record in records if record.path.stem == stem]
    return named[0] if len(named) == 1 else None


def _by_box(
    box: tuple[float, float, float, float], records: list[ImageRecord]
) -> ImageRecord | None:
    """The image that holds the clipped form of a box."""
    for record in records:
        clipped = np.clip(box, 0, [record.width, record.height] * 2)
        off = np.abs(record.boxes_xyxy_px - clipped).max(axis=1, initial=0.0)
        if len(off) and off.min() <= _ROUNDING_PX:
            return record
    return None
