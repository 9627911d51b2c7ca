"""What the four numbers of a COCO file's boxes are, where they are not x, y, w, h in pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dino_core.data.faults import FaultLog
from dino_core.data.formats.labeled import LabeledImage
from dino_core.data.formats.record import ROUNDING_PX, LabeledBox

_MOST_FRACTION = 1.001  # rounding may push x + w over 1
_LEAST_OUTSIDE = 2  # boxes: a single one may be a slip


def with_boxes(
    images: Iterable[LabeledImage],
    boxes_of: Mapping[int, Sequence[LabeledBox]],
    file: Path,
    log: FaultLog,
) -> list[LabeledImage]:
    """The images of a file with their boxes.

    Boxes that are fractions of the image's size, or corners x1, y1, x2, y2, are taken as what they
    are where all boxes of the file agree, which is recorded.

    Args:
        images: Without boxes.
        boxes_of: By image id; corners in pixels, made of x, y, w, h.
        file: For faults.
        log: Records fractions and corners.
    """
    images = [replace(image, boxes=boxes_of.get(image.image_id, ())) for image in images]
    if _are_fractions(images):
        log.add("boxes-in-fractions", str(file))
        return [replace(image, in_fractions=True) for image in images]
    if _are_corners(images):
        log.add("boxes-as-corners", str(file))
        return [replace(i, boxes=list(map(_from_corners, i.boxes))) for i in images]
    return images


def _are_fractions(images: Sequence[LabeledImage]) -> bool:
    numbers = [number for image in images for box in image.boxes for number in box.xyxy]
    whole = all(number.is_integer() for number in numbers)
    return bool(numbers) and not whole and min(numbers) >= 0 and max(numbers) <= _MOST_FRACTION


def _are_corners(images: Sequence[LabeledImage]) -> bool:
    """Whether most boxes reach outside their images as x, y, w, h, and none does as corners."""
    total = outside = 0
    for image in images:
        if image.stated_wh is None:
            continue
        width, height = (side + ROUNDING_PX for side in image.stated_wh)
        for box in image.boxes:
            _, _, far_x, far_y = box.xyxy
            x1, y1, x2, y2 = _from_corners(box).xyxy
            if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
                return False
            total += 1
            outside += far_x > width or far_y > height
    return outside >= _LEAST_OUTSIDE and 2 * outside >= total


def _from_corners(box: LabeledBox) -> LabeledBox:
    """The box whose numbers were x1, y1, x2, y2, taken as x, y, w, h before."""
    x1, y1, far_x, far_y = box.xyxy
    return replace(box, xyxy=(x1, y1, far_x - x1, far_y - y1))
