"""What a format cannot hold, one sentence per kind; writers return it, and converters list it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dino_core.data.formats.values import in_class_order
from dino_core.data.records import DatasetIndex, ImageRecord
from dino_core.detections import ClassMap
from dino_core.errors import DataError


def lost_crowds(index: DatasetIndex, format: str) -> list[str]:
    """Crowd boxes, which the writer leaves out."""
    crowds = sum(int(record.is_crowd.sum()) for record in index.records)
    if not crowds:
        return []
    return [f"{_boxes(crowds, 'crowd box')} left out: {format} cannot mark crowds"]


def lost_areas(index: DatasetIndex) -> list[str]:
    """Areas that are not those of the boxes, e.g. of outlines."""
    areas = sum(_other_areas(record) for record in index.records)
    return (
        [f"areas of {_boxes(areas)} are lost, which differ from width times height"]
        if areas
        else []
    )


def lost_flags(index: DatasetIndex, format: str) -> list[str]:
    """Flags such as VOC's difficult."""
    counts: Counter[str] = Counter()
    for record in index.records:
        counts.update({flag: int(marked.sum()) for flag, marked in record.flags.items()})
    return [
        f"the flag '{flag}' of {_boxes(count)} is lost: {format} has no place for it"
        for flag, count in counts.items()
        if count
    ]


def lost_image_ids(index: DatasetIndex, format: str) -> list[str]:
    """Image ids, where a reader of the format will number the images in their order."""
    return [
        f"{split}: image ids are lost, {format} knows images by name"
        for split, records in index.splits.items()
        if [record.image_id for record in records] != list(range(1, len(records) + 1))
    ]


def lost_class_ids(index: DatasetIndex, format: str) -> list[str]:
    """Class ids, their order, and unused classes, where the format names a class at each box."""
    used = {i for r in index.records for i in r.class_indices[~r.is_crowd].tolist()}
    unused = [name for i, name in enumerate(index.classes.names) if name and i not in used]
    lost = []
    if unused:
        lost.append(
            f"classes without boxes are lost ({', '.join(unused):.80}): "
            f"{format} knows classes by their boxes"
        )
    named = {n: i for n, i in zip(*_named(index.classes), strict=True) if n not in unused}
    if named != {name: i for i, name in enumerate(in_class_order(named))}:
        ids = ", ".join(map(str, named.values()))
        lost.append(
            f"the class ids ({ids:.60}) are lost: {format} knows classes by name, in sorted order"
        )
    return lost


def require_boxes(index: DatasetIndex, format: str) -> None:
    """Raise DataError if a format that names a class at each box would have no class at all."""
    if not any((~record.is_crowd).any() for record in index.records):
        raise DataError(
            f"{index.root}: there are no boxes, so {format} could not name the classes",
            "write it as coco or yolo",
        )


def _boxes(count: int, one: str = "box") -> str:
    return f"{count} {one}{'' if count == 1 else 'es'}"


def _named(classes: ClassMap) -> tuple[Sequence[str], Sequence[int]]:
    used = [i for i, name in enumerate(classes.names) if name]
    return [classes.names[i] for i in used], [classes.source_ids[i] for i in used]


def _other_areas(record: ImageRecord) -> int:
    sides = record.boxes_xyxy_px[:, 2:] - record.boxes_xyxy_px[:, :2]
    full = sides[:, 0] * sides[:, 1]
    return int((np.abs(record.areas - full) > 0.01 * full + 0.01)[~record.is_crowd].sum())
