"""The entries of a COCO annotation file, each checked as it is taken, with its place in errors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_core.errors import DataError

_KEYS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class CocoFile:
    """The three lists of one annotation file, their shape checked but not their entries."""

    file: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]

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
        return cls(file, *(_entries(file, data, key) for key in _KEYS))


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
    if isinstance(value, str) and value.strip().lstrip("-").isdigit():
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{where}: {what} is {value!r:.60}, expected an integer")
    return value


def unique_id(entry: Mapping[str, Any], seen: Mapping[int, Any], kind: str, where: str) -> int:
    entry_id = integer(get(entry, "id", where), "id", where)
    if entry_id in seen:
        raise DataError(f"{where}: the {kind} id {entry_id} is used twice", "ids must be unique")
    return entry_id


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_bbox(value: Any, where: str) -> tuple[float, float, float, float]:
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        raise DataError(f"{where}: bbox is {value!r:.80}, expected four numbers [x, y, w, h]")
    if not all(map(math.isfinite, value)):
        raise DataError(f"{where}: bbox is {value!r:.80}, its numbers must be finite")
    x, y, w, h = map(float, value)
    return x, y, w, h


def read_area(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or not math.isfinite(value) or value < 0:
        raise DataError(f"{where}: area is {value!r:.60}, expected a number >= 0")
    return float(value)
