"""Small labelled data sets on disk, in COCO and YOLO form, to be read and spoilt by tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

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
