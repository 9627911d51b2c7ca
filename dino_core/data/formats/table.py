"""The formats of labeled data: one row each. The command line reads its choices from here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dino_core.data.formats.coco import read_coco, write_coco
from dino_core.data.formats.coco_files import COCO_LAYOUT, find_coco
from dino_core.data.formats.csv_files import CSV_LAYOUT, find_csv
from dino_core.data.formats.csv_table import read_csv, write_csv
from dino_core.data.formats.format import Format
from dino_core.data.formats.labelme import LABELME_LAYOUT, find_labelme, read_labelme, write_labelme
from dino_core.data.formats.voc import read_voc, write_voc
from dino_core.data.formats.voc_files import VOC_LAYOUT, find_voc
from dino_core.data.formats.yolo import names_classes, read_yolo, write_yolo
from dino_core.data.formats.yolo_files import YOLO_LAYOUT, find_yolo
from dino_core.data.formats.yolo_labels import label_path
from dino_core.errors import ConfigError
from dino_core.suggestions import nearest_or_all

FORMATS: Mapping[str, Format[Any]] = {
    "coco": Format("COCO", COCO_LAYOUT, find_coco, read_coco, write_coco),
    "yolo": Format(
        "YOLO", YOLO_LAYOUT, find_yolo, read_yolo, write_yolo, names_classes, label_path
    ),
    "voc": Format("Pascal VOC", VOC_LAYOUT, find_voc, read_voc, write_voc),
    "labelme": Format("labelme", LABELME_LAYOUT, find_labelme, read_labelme, write_labelme),
    "csv": Format("CSV", CSV_LAYOUT, find_csv, read_csv, write_csv),
}
"""Name to format. Where a folder fits several, the first of them is read."""


def require_format(name: str) -> None:
    """Raises ConfigError, with the nearest known name, for a format that is not in the table."""
    if name not in FORMATS:
        raise ConfigError(f"unknown data format '{name}'", nearest_or_all(name, FORMATS))
