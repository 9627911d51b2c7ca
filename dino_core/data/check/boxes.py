"""Boxes that look like mistakes: duplicates, two classes, as large as the image, or tiny."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dino_core.config import PreprocessConfig
from dino_core.data.faults import FaultLog, MarkedBox
from dino_core.data.records import DatasetIndex, ImageRecord
from dino_core.processing.overlap import box_iou
from dino_core.processing.preprocess import resized_size

_SAME_IOU = 0.95
_WHOLE = 0.99  # share of width and of height
_TINY_PX = 4.0  # short side in the network's input: half a cell of its finest feature map, stride 8


def check_boxes(dataset: DatasetIndex, preprocess: PreprocessConfig, log: FaultLog) -> None:
    """Check every box except crowds.

    Boxes that reach outside their image or have no area are found by the readers, which clip them
    or leave them out.
    """
    names = dataset.classes.names
    for record in dataset.records:
        wanted = np.flatnonzero(~record.is_crowd)
        boxes, classes = record.boxes_xyxy_px[wanted], record.class_indices[wanted]
        if not len(boxes):
            continue
        _check_pairs(record, boxes, classes, names, log)
        sides = boxes[:, 2:] - boxes[:, :2]
        whole = (sides >= _WHOLE * np.array([record.width, record.height])).all(axis=1)
        input_hw = resized_size((record.height, record.width), preprocess)
        scale = np.array([input_hw[1] / record.width, input_hw[0] / record.height])
        tiny = (sides * scale).min(axis=1) < _TINY_PX
        for kind, at_fault in (("box-whole-image", whole), ("box-tiny", tiny)):
            chosen = np.flatnonzero(at_fault).tolist()
            if chosen:
                marked = tuple(_marked(boxes[i], names[classes[i]]) for i in chosen)
                log.add(kind, _in_words(record, marked), (record.path,), marked, len(marked))


def marked_boxes(record: ImageRecord, names: tuple[str, ...]) -> tuple[MarkedBox, ...]:
    """All boxes of an image, to show."""
    return tuple(
        _marked(box, names[class_index])
        for box, class_index in zip(record.boxes_xyxy_px, record.class_indices, strict=True)
    )


def _check_pairs(
    record: ImageRecord,
    boxes: NDArray[np.float32],
    classes: NDArray[np.int64],
    names: tuple[str, ...],
    log: FaultLog,
) -> None:
    """Pairs of boxes at one place. A box counts once, however many others lie on it."""
    same_place = np.triu(box_iou(boxes, boxes) >= _SAME_IOU, k=1)
    if not same_place.any():
        return
    same_class = classes[:, None] == classes[None, :]
    copies = np.flatnonzero((same_place & same_class).any(axis=0))
    if len(copies):
        marked = tuple(_marked(boxes[i], names[classes[i]]) for i in copies.tolist())
        log.add("box-duplicate", _in_words(record, marked), (record.path,), marked, len(marked))
    for second in np.flatnonzero((same_place & ~same_class).any(axis=0)).tolist():
        first = int(np.flatnonzero((same_place & ~same_class)[:, second])[0])
        label = f"{names[classes[first]]} and {names[classes[second]]}"
        marked = (_marked(boxes[second], label),)
        log.add("box-two-classes", _in_words(record, marked), (record.path,), marked)


def _marked(box: NDArray[np.float32], label: str) -> MarkedBox:
    x1, y1, x2, y2 = box.tolist()
    return MarkedBox((x1, y1, x2, y2), label)


def _in_words(record: ImageRecord, boxes: Iterable[MarkedBox]) -> str:
    """`a.jpg (640x480): dog 12x9 at 30,40`."""
    words = []
    for box in boxes:
        x1, y1, x2, y2 = box.xyxy_px
        words.append(f"{box.label} {x2 - x1:.4g}x{y2 - y1:.4g} at {x1:.4g},{y1:.4g}")
    return f"{record.path} ({record.width}x{record.height}): {'; '.join(words)}"
