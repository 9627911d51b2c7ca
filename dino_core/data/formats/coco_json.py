"""The entries of a COCO annotation file, each checked as it is taken, with its place in errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_core.data.faults import FaultLog
from dino_core.data.formats.coco_outlines import box_of_segmentation
from dino_core.data.formats.json_file import load_json
from dino_core.data.formats.values import LARGEST, listed, number, whole_number
from dino_core.errors import DataError
from dino_core.limits import shown

_KINDS = {
    "images": "malformed-image-entry",
    "annotations": "malformed-label",
    "categories": "malformed-class",
}  # the lists of a file, and the kind of fault of an entry that is no object


@dataclass(frozen=True)
class CocoFile:
    """The three lists of one annotation file; their entries are checked as they are read.

    Attributes:
        file: Where they were read.
        lists: Entries by the names of the lists: "images", "annotations", "categories".
        numbers: A number for each image id where the ids are words, counted from 1; else empty.
    """

    file: Path
    lists: Mapping[str, list[Any]]
    numbers: Mapping[str, int]

    @classmethod
    def load(cls, file: Path, log: FaultLog, labeled: bool = True) -> CocoFile:
        """Read a file.

        Args:
            file: The JSON file.
            log: Records entries that are no JSON objects.
            labeled: Whether the file must have annotations; a test split needs none.

        Raises:
            DataError: it is not a COCO file.
        """
        data = load_json(file)
        if not isinstance(data, dict):
            raise DataError(
                f"{file}: expected a JSON object with images, annotations and categories, "
                f"found a {type(data).__name__}",
                "a list of results is not a data set" if isinstance(data, list) else "",
            )
        if not labeled:
            data.setdefault("annotations", [])
        lists = {name: _list_of(file, data, name) for name in _KINDS}
        for name, entries in lists.items():
            for i, entry in enumerate(entries):
                if not isinstance(entry, dict):
                    place = f"{file}: {name}[{i}] is {shown(entry)}, expected an object"
                    log.add(_KINDS[name], place)
        return cls(file, lists, _numbers([e for e in lists["images"] if isinstance(e, dict)]))

    def entries(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Place and content of each entry of a list, without those that are no objects."""
        for i, entry in enumerate(self.lists[name]):
            if isinstance(entry, dict):
                yield f"{self.file}: {name}[{i}]", entry

    def objects(self, name: str) -> Iterator[dict[str, Any]]:
        """As `entries`, without the places."""
        return (entry for entry in self.lists[name] if isinstance(entry, dict))

    def image_id(self, entry: Mapping[str, Any], key: str, where: str) -> int:
        """The integer that stands for an image; 0 for a word that no image has as its id."""
        if not self.numbers:
            return integer(get(entry, key, where), key, where)
        # Ids begin at 1, so 0 is no image's, and the caller reports the annotation as one of no
        # image.
        return self.numbers.get(str(get(entry, key, where)), 0)


def _numbers(images: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """A number for each image's id where most of the ids are words; else none."""
    words = [str(entry.get("id")) for entry in images if isinstance(entry.get("id"), str)]
    # Digits in quotes are numbers; only real words, e.g. file names, need numbers of their own.
    words = [word for word in words if not _is_integer(word)]
    if 2 * len(words) <= len(images):
        return {}
    every = dict.fromkeys(str(entry["id"]) for entry in images if "id" in entry)
    return {word: i for i, word in enumerate(every, start=1)}


def _is_integer(text: str) -> bool:
    return whole_number(text) is not None


def _list_of(file: Path, data: Mapping[str, Any], name: str) -> list[Any]:
    """A list of a COCO file; DataError where it is missing or no list."""
    if name not in data:
        raise DataError(
            f"{file}: the key '{name}' is missing, found {listed(data)}",
            "a COCO file has images, annotations and categories",
        )
    entries = data[name]
    if not isinstance(entries, list):
        raise DataError(f"{file}: '{name}' is a {type(entries).__name__}, expected a list")
    return entries


def get(entry: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in entry:
        raise DataError(f"{where}: the key '{key}' is missing, found {listed(entry)}")
    return entry[key]


def integer(value: Any, what: str, where: str) -> int:
    """`value` as an integer; whole floats and digits in quotes are taken."""
    found = whole_number(value)  # JSON's true is an int in Python, and none here.
    if found is None:
        raise DataError(f"{where}: {what} is {shown(value)}, expected an integer")
    return found


def read_bbox(entry: Mapping[str, Any], where: str) -> tuple[float, float, float, float]:
    """The box x, y, w, h of an annotation: its bbox, else the box around its outlines."""
    # Some exporters write segmentations only, or an empty list as the box.
    if not entry.get("bbox"):
        outlined = box_of_segmentation(entry.get("segmentation"))
        if outlined is not None:
            return outlined
    value = get(entry, "bbox", where)
    numbers = [number(each) for each in value] if isinstance(value, list) else []
    found = [each for each in numbers if each is not None]
    if len(numbers) != 4 or len(found) != 4:
        raise DataError(
            f"{where}: bbox is {shown(value)}, expected four numbers of pixels [x, y, w, h]"
        )
    x, y, w, h = found
    return x, y, w, h


def read_area(value: Any, where: str) -> float | None:
    if value is None:
        return None
    try:
        area = float(value) if isinstance(value, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        area = math.nan
    if isinstance(value, bool) or not 0 <= area <= LARGEST**2:
        raise DataError(f"{where}: area is {shown(value)}, expected a number >= 0")
    return area
