"""The entries of a COCO annotation file, each checked as it is taken, with its place in errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dino_core.data.faults import FaultLog
from dino_core.data.formats.json_file import load_json
from dino_core.errors import DataError

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
                    place = f"{file}: {name}[{i}] is {entry!r:.60}, expected an object"
                    log.add(_KINDS[name], place)
        found = cls(file, lists, {})
        return replace(found, numbers=_numbers([e for _, e in found.entries("images")]))

    def entries(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Place and content of each entry of a list, without those that are no objects."""
        for i, entry in enumerate(self.lists[name]):
            if isinstance(entry, dict):
                yield f"{self.file}: {name}[{i}]", entry

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
    return text.strip().lstrip("-").isdigit()


def _list_of(file: Path, data: Mapping[str, Any], name: str) -> list[Any]:
    """A list of a COCO file; DataError where it is missing or no list."""
    if name not in data:
        found = ", ".join(map(str, data)) or "nothing"
        raise DataError(
            f"{file}: the key '{name}' is missing, found {found:.200}",
            "a COCO file has images, annotations and categories",
        )
    entries = data[name]
    if not isinstance(entries, list):
        raise DataError(f"{file}: '{name}' is a {type(entries).__name__}, expected a list")
    return entries


def get(entry: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in entry:
        raise DataError(f"{where}: the key '{key}' is missing, found {', '.join(entry)}")
    return entry[key]


def integer(value: Any, what: str, where: str) -> int:
    """`value` as an integer; whole floats and digits in quotes are taken."""
    if isinstance(value, str) and _is_integer(value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    # JSON's true is an int in Python.
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{where}: {what} is {value!r:.60}, expected an integer")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_bbox(entry: Mapping[str, Any], where: str) -> tuple[float, float, float, float]:
    """The box x, y, w, h of an annotation: its bbox, else the box around its outlines."""
    # Some exporters write segmentations only, or an empty list as the box.
    if not entry.get("bbox"):
        outlined = _box_of_outlines(entry.get("segmentation"))
        if outlined is not None:
            return outlined
    value = get(entry, "bbox", where)
    try:
        numbers = [float(number) for number in value if not isinstance(number, bool)]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 4 or len(value) != 4:
        raise DataError(f"{where}: bbox is {value!r:.80}, expected four numbers [x, y, w, h]")
    if not all(map(math.isfinite, numbers)):
        raise DataError(f"{where}: bbox is {value!r:.80}, its numbers must be finite")
    x, y, w, h = numbers
    return x, y, w, h


def _box_of_outlines(outlines: Any) -> tuple[float, float, float, float] | None:
    """The box around polygons [[x, y, x, y, ...], ...]; None where these are none."""
    if not isinstance(outlines, list) or not all(isinstance(line, list) for line in outlines):
        return None
    numbers = [number for line in outlines for number in line]
    if not numbers or any(len(line) % 2 for line in outlines) or not all(map(_is_number, numbers)):
        return None
    xs, ys = ([n for line in outlines for n in line[start::2]] for start in (0, 1))
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def read_area(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or not math.isfinite(value) or value < 0:
        raise DataError(f"{where}: area is {value!r:.60}, expected a number >= 0")
    return float(value)
