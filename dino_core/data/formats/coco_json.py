"""The entries of a COCO annotation file, each checked as it is taken, with its place in errors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_core.errors import DataError

_KEYS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class CocoFile:
    """The three lists of one annotation file, their shape checked but not their entries.

    Attributes:
        file: Where they were read.
        images, annotations, categories: As they stand there.
        numbers: Of images by their ids, where these are words; counted from 1.
    """

    file: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    numbers: Mapping[str, int]

    @classmethod
    def load(cls, file: Path, labelled: bool = True) -> CocoFile:
        """Read a file; one that need not be labelled may have no annotations at all."""
        try:
            data = json.loads(file.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
        except json.JSONDecodeError as error:
            raise DataError(
                f"{file} line {error.lineno}: not valid JSON ({error.msg})",
                "the file may be truncated; write or download it again",
            ) from error
        except (UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"{file}: not valid JSON ({error})") from error
        if not isinstance(data, dict):
            raise DataError(
                f"{file}: expected a JSON object with images, annotations and categories, "
                f"found a {type(data).__name__}",
                "a list of results is not a data set" if isinstance(data, list) else "",
            )
        if not labelled:
            data.setdefault("annotations", [])
        images, annotations, categories = (_entries(file, data, key) for key in _KEYS)
        return cls(file, images, annotations, categories, _numbers(images))

    def image_id(self, entry: Mapping[str, Any], key: str, where: str) -> int:
        """The integer that stands for an image; 0 for a word that no image has as its id."""
        if not self.numbers:
            return integer(get(entry, key, where), key, where)
        return self.numbers.get(str(get(entry, key, where)), 0)


def _numbers(images: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """A number for each image's id where all are different words; else none."""
    ids = [str(entry.get("id")) for entry in images if isinstance(entry.get("id"), str)]
    if len(set(ids)) != len(images) or all(map(_is_integer, ids)):
        return {}
    return {word: i for i, word in enumerate(ids, start=1)}


def _is_integer(text: str) -> bool:
    return text.strip().lstrip("-").isdigit()


def _entries(file: Path, data: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The list `key` of a COCO file; DataError where it is missing or holds other than objects."""
    if key not in data:
        found = ", ".join(map(str, data)) or "nothing"
        raise DataError(
            f"{file}: the key '{key}' is missing, found {found}",
            "a COCO file has images, annotations and categories",
        )
    entries = data[key]
    if not isinstance(entries, list):
        raise DataError(f"{file}: '{key}' is a {type(entries).__name__}, expected a list")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(f"{file}: {key}[{i}] is {entry!r:.60}, expected an object")
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
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{where}: {what} is {value!r:.60}, expected an integer")
    return value


def require_new(entry_id: int, seen: Mapping[int, Any], kind: str, where: str) -> None:
    if entry_id in seen:
        raise DataError(f"{where}: the {kind} id {entry_id} is used twice", "ids must be unique")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_bbox(entry: Mapping[str, Any], where: str) -> tuple[float, float, float, float]:
    """x, y, w, h of an annotation: its bbox, else what its outlines fill."""
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
