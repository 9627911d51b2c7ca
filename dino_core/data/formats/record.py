"""From the boxes of one image, as its labels state them, to a sound `ImageRecord`."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dino_core.data.faults import FaultLog, MarkedBox
from dino_core.data.records import ImageRecord

ROUNDING_PX = 0.01
"""A box that reaches this far outside its image does so by rounding, not by mistake."""


@dataclass(frozen=True)
class LabeledBox:
    """One box as its file states it.

    Attributes:
        place: File and line or entry, for faults.
        xyxy: Corners, in pixels of the stated image size or in fractions of width and height.
        class_index: Index into the data set's ClassMap.
        is_crowd: Whether it is a COCO crowd.
        area: As stated, in the square of the unit of `xyxy`; None for width times height.
        flags: Flags such as VOC's "difficult".
    """

    place: str
    xyxy: tuple[float, float, float, float]
    class_index: int
    is_crowd: bool = False
    area: float | None = None
    flags: Set[str] = frozenset()


def make_record(
    image_id: int,
    path: Path,
    size_wh: tuple[int, int],
    boxes: Sequence[LabeledBox],
    log: FaultLog,
    scale_xy: tuple[float, float] = (1.0, 1.0),
) -> ImageRecord:
    """The record of one image: boxes are clipped to it, and those without area are left out.

    Args:
        image_id: The image's id.
        path: Its file.
        size_wh: Upright width and height in pixels.
        boxes: Finite boxes, anywhere.
        log: Records clipped boxes and those left out.
        scale_xy: Pixels of the file per unit of the boxes.
    """
    width, height = size_wh
    scale_x, scale_y = scale_xy
    corners = np.array([box.xyxy for box in boxes], np.float64).reshape(-1, 4)
    corners = corners * [scale_x, scale_y, scale_x, scale_y]
    limit = np.array([width, height, width, height], np.float64)
    # The largest distance by which any side leaves the image; at least 0.
    outside = np.maximum(np.maximum(-corners, corners - limit), 0.0).max(axis=1, initial=0.0)
    clipped = np.clip(corners, 0.0, limit)
    # Whether a box has area is decided in float32, in which the record keeps it.
    sides = clipped[:, 2:].astype(np.float32) - clipped[:, :2].astype(np.float32)
    empty: NDArray[np.bool_] = sides.min(axis=1, initial=np.inf) <= 0
    for i in np.flatnonzero(empty | (outside > ROUNDING_PX)).tolist():
        kind = "box-degenerate" if empty[i] else "box-outside"
        _log_box(log, kind, boxes[i].place, path, corners[i], size_wh)
    kept = np.flatnonzero(~empty).tolist()
    # A box that leaves by rounding is kept to the bit, so that reading a data set and writing it
    # again changes nothing.
    final = np.where(outside[:, None] > ROUNDING_PX, clipped, corners)[kept].astype(np.float32)
    sides = final[:, 2:] - final[:, :2]
    # NaN marks areas that are not stated, for which the box's own area is used.
    stated = np.array([np.nan if (a := boxes[i].area) is None else a for i in kept], np.float64)
    # Areas scale with both axes.
    stated = (stated * (scale_x * scale_y)).astype(np.float32)
    areas = np.where(np.isnan(stated), sides[:, 0] * sides[:, 1], stated)
    flags = [boxes[i].flags for i in kept]
    stated_corners = corners[kept].astype(np.float32)
    is_clipped = bool((outside[kept] > ROUNDING_PX).any())
    return ImageRecord(
        image_id=image_id,
        path=path,
        width=width,
        height=height,
        boxes_xyxy_px=final,
        class_indices=np.array([boxes[i].class_index for i in kept], np.int64),
        is_crowd=np.array([boxes[i].is_crowd for i in kept], np.bool_),
        areas=areas.astype(np.float32),
        flags={
            flag: np.array([flag in found for found in flags], np.bool_)
            for flag in sorted({flag for found in flags for flag in found})
        },
        stated_xyxy_px=stated_corners if is_clipped else None,
    )


def _log_box(
    log: FaultLog,
    kind: str,
    place: str,
    path: Path,
    corners: NDArray[np.float64],
    size_wh: tuple[int, int],
) -> None:
    x1, y1, x2, y2 = corners.tolist()
    found = ", ".join(f"{v:.6g}" for v in (x1, y1, x2, y2))
    log.add(
        kind,
        f"{place}: corners {found} in {path} of {size_wh[0]}x{size_wh[1]}",
        (path,),
        (MarkedBox((x1, y1, x2, y2), "as labeled"),),
    )
