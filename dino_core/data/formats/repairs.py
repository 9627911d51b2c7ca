"""What every reader shares: counted repairs, and the boxes of one image made sound."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dino_core.data.records import ImageRecord

ROUNDING_PX = 0.01  # a box this far outside its image is rounding, not a mistake


class Repairs:
    """Counts what a reader repairs, by kind, and remembers the first place of each."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[int, str]] = {}

    def add(self, one: str, many: str, place: str, count: int = 1) -> None:
        """Note a repair.

        Args:
            one: What happened to one item, e.g. "image file is missing and was left out".
            many: The same for several, e.g. "image files are missing and were left out".
            place: Where, and what was found.
            count: How many items.
        """
        before, first = self._found.get((one, many), (0, place))
        self._found[one, many] = (before + count, first)

    def sentences(self) -> tuple[str, ...]:
        """One sentence a kind, in the order in which the kinds were first met."""
        return tuple(
            f"{count} {one if count == 1 else many} ({'' if count == 1 else 'first: '}{first})"
            for (one, many), (count, first) in self._found.items()
        )


def make_record(
    image_id: int,
    path: Path,
    size_wh: tuple[int, int],
    boxes_xyxy_px: Sequence[Sequence[float]],
    class_indices: Sequence[int],
    places: Sequence[str],
    repairs: Repairs,
    is_crowd: Sequence[bool] | None = None,
    areas: Sequence[float | None] | None = None,
    flags: Sequence[Set[str]] | None = None,
) -> ImageRecord:
    """One image's record: boxes are clipped to the image, boxes without area left out.

    Args:
        image_id: The image's id.
        path: Its file.
        size_wh: Upright width and height.
        boxes_xyxy_px: N finite boxes, anywhere.
        class_indices: N class indices.
        places: N places, for the notes on repaired boxes.
        repairs: Where repairs are noted.
        is_crowd: N flags; none set where None.
        areas: N areas; width times height where None.
        flags: N sets of marks; none where None.
    """
    width, height = size_wh
    boxes = np.asarray(boxes_xyxy_px, np.float64).reshape(-1, 4)
    limit = np.array([width, height, width, height], np.float64)
    outside = np.maximum(np.maximum(-boxes, boxes - limit), 0.0).max(axis=1, initial=0.0)
    clipped = np.clip(boxes, 0.0, limit)
    sides = clipped[:, 2:].astype(np.float32) - clipped[:, :2].astype(np.float32)
    empty: NDArray[np.bool_] = sides.min(axis=1, initial=np.inf) <= 0
    for i in np.flatnonzero(empty | (outside > ROUNDING_PX)).tolist():
        _note_box(repairs, places[i], boxes[i], size_wh, bool(empty[i]))
    keep = ~empty
    final = np.where(outside[:, None] > ROUNDING_PX, clipped, boxes)[keep].astype(np.float32)
    sides = final[:, 2:] - final[:, :2]
    full = sides[:, 0] * sides[:, 1]
    if areas is not None:
        known = np.array([np.nan if a is None else a for a in areas], np.float32)[keep]
        full = np.where(np.isnan(known), full, known)
    marks = [] if flags is None else [flags[i] for i in np.flatnonzero(keep).tolist()]
    crowd = np.zeros(len(boxes), np.bool_) if is_crowd is None else np.asarray(is_crowd, np.bool_)
    return ImageRecord(
        image_id=image_id,
        path=path,
        width=width,
        height=height,
        boxes_xyxy_px=final,
        class_indices=np.asarray(class_indices, np.int64)[keep],
        is_crowd=crowd[keep],
        areas=full.astype(np.float32),
        flags={
            flag: np.array([flag in found for found in marks], np.bool_)
            for flag in sorted({flag for found in marks for flag in found})
        },
    )


def _note_box(
    repairs: Repairs,
    place: str,
    box: NDArray[np.float64],
    size_wh: tuple[int, int],
    empty: bool,
) -> None:
    corners = ", ".join(f"{v:.6g}" for v in box)
    found = f"{place}: corners {corners} in an image of {size_wh[0]}x{size_wh[1]}"
    if empty:
        repairs.add(
            "box has no area inside its image and was left out",
            "boxes have no area inside their images and were left out",
            found,
        )
    else:
        repairs.add(
            "box reaches outside its image and was clipped",
            "boxes reach outside their images and were clipped",
            found,
        )
