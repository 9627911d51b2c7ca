"""Small labeled data sets on disk and in memory, to be read, written and damaged by tests."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from PIL import Image

from dino_core.data.faults import FaultLog
from dino_core.data.formats.record import LabeledBox, make_record
from dino_core.data.records import ImageRecord

YOLO_YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


def image_file(path: Path, size: tuple[int, int] = (40, 20), orientation: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", size, (90, 120, 30)).save(path, exif=exif)
    return path


def text_file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def yolo_set(
    root: Path, labels: str = "1 0.5 0.5 0.25 0.5\n", yaml: str | None = YOLO_YAML
) -> Path:
    for split in ("train", "val"):
        image_file(root / f"images/{split}/a.jpg")
        text_file(root / f"labels/{split}/a.txt", labels)
    if yaml is not None:
        text_file(root / "data.yaml", yaml)
    return root


def coco_table(**changes: Any) -> dict[str, Any]:
    """Two images of 40x30, ids with gaps, one crowd, one image without boxes."""
    table: dict[str, Any] = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.jpg", "width": 40, "height": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1.5, 2, 10, 20], "area": 120.0},
            {"id": 2, "image_id": 7, "category_id": 4, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
    }
    return {**table, **changes}


def coco_set(root: Path, table: Any, split: str = "train") -> Path:
    for name in ("a.jpg", "b.jpg"):
        image_file(root / "images" / split / name, (40, 30))
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(table if isinstance(table, str) else json.dumps(table), encoding="utf-8")
    return file


def record_of(
    path: Path,
    size_wh: tuple[int, int],
    boxes: Sequence[Sequence[float]] = (),
    classes: Sequence[int] = (),
    image_id: int = 1,
    *,
    is_crowd: Sequence[bool] | None = None,
    areas: Sequence[float | None] | None = None,
    flags: Sequence[Set[str]] | None = None,
) -> ImageRecord:
    """A record with these boxes (corners in pixels) and class indices."""
    labeled = []
    for i, ((x1, y1, x2, y2), class_index) in enumerate(zip(boxes, classes, strict=True)):
        labeled.append(
            LabeledBox(
                f"box {i}",
                (x1, y1, x2, y2),
                class_index,
                is_crowd[i] if is_crowd is not None else False,
                areas[i] if areas is not None else None,
                flags[i] if flags is not None else frozenset(),
            )
        )
    log = FaultLog()
    record = make_record(image_id, path, size_wh, labeled, log)
    assert log.faults() == ()
    return record
