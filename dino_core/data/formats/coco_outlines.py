"""The box around a COCO segmentation: polygons, one flat polygon, or a run-length encoded mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dino_core.data.formats.values import number, whole_number

Box = tuple[float, float, float, float]  # x, y, width, height


def box_of_segmentation(segmentation: Any) -> Box | None:
    """The box x, y, w, h in pixels around a segmentation; None where it is none, or empty."""
    if isinstance(segmentation, dict):
        return _box_of_mask(segmentation.get("counts"), segmentation.get("size"))
    if not isinstance(segmentation, list) or not segmentation:
        return None
    is_flat = not isinstance(segmentation[0], (list, dict))
    return _box_of_polygons([segmentation] if is_flat else segmentation)


def _box_of_polygons(polygons: Sequence[Any]) -> Box | None:
    """The box around polygons [x, y, x, y, ...]."""
    xs: list[float] = []
    ys: list[float] = []
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2:
            return None
        numbers = [found for each in polygon if (found := number(each)) is not None]
        if len(numbers) < len(polygon):
            return None
        xs += numbers[::2]
        ys += numbers[1::2]
    return (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)) if xs else None


def _box_of_mask(counts: Any, size: Any) -> Box | None:
    """The box around a mask of runs: pixels by columns, runs outside and inside in turn."""
    sides = list(map(whole_number, size)) if isinstance(size, list) else []
    height, width = sides if len(sides) == 2 else (None, None)
    runs = _decoded(counts) if isinstance(counts, str) else counts
    if not height or not width or min(height, width) < 0 or not isinstance(runs, list):
        return None
    columns: list[int] = []
    rows: list[int] = []
    at = 0
    for i, run in enumerate(map(whole_number, runs)):
        if run is None or run < 0 or at + run > height * width:
            return None
        if i % 2 and run:
            first, last = at, at + run - 1
            columns += (first // height, last // height)
            spans = columns[-1] > columns[-2]  # then it reaches the lower and the upper edge
            rows += (0, height - 1) if spans else (first % height, last % height)
        at += run
    if not columns:
        return None
    x, y = min(columns), min(rows)
    return float(x), float(y), float(max(columns) + 1 - x), float(max(rows) + 1 - y)


def _decoded(text: str) -> list[int] | None:
    """The runs of COCO's compressed text; None where it is none.

    Each character holds 5 bits of a signed number, least significant first, and a sixth that says
    whether more follow. From the fourth number on they are differences to the one two before.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    return None if shift else runs
