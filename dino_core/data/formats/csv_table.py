"""CSV tables of boxes, one a row, to and from the neutral form.

Read are TensorFlow's and Roboflow's tables, RetinaNet's without header, Open Images' (fractions of
the image's size), and others that name their columns in a common way. Corners are pixels counted
from 0, taken as they are.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from dino_core.data.faults import FaultLog
from dino_core.data.formats.csv_files import (
    ONLY_CLASS,
    CsvFiles,
    CsvRow,
    CsvTable,
    read_table,
)
from dino_core.data.formats.images import (
    copy_images,
    number_text,
    unique_names,
    writing_failed,
)
from dino_core.data.formats.labeled import LabeledImage, read_images
from dino_core.data.formats.layout import SPLIT_NAMES, image_folders, root_of
from dino_core.data.formats.losses import (
    lost_areas,
    lost_class_ids,
    lost_crowds,
    lost_flags,
    lost_image_ids,
    require_boxes,
)
from dino_core.data.formats.record import LabeledBox
from dino_core.data.records import DatasetIndex, ImageRecord
from dino_core.detections import ClassMap
from dino_core.errors import DataError
from dino_core.files import write_text

_HEADER = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax", "split")


def read_csv(files: CsvFiles) -> DatasetIndex:
    """Read a CSV data set: a folder (see `CSV_LAYOUT`) or one table.

    Classes are the names found, sorted. A row with an empty box is an image without boxes. Images
    are numbered from 1 in the order of their first rows. The split is that of the row, else of the
    table's name or folder, else "train".

    Raises:
        DataError: a file is missing or malformed, naming the line.
    """
    tables = {split: read_table(file) for split, file in files.tables.items()}
    rows = [row for table in tables.values() for row in table.rows]
    names = sorted({row.label for row in rows if row.label})
    if not names:
        first = next(iter(files.tables.values()))
        raise DataError(
            f"{first}: none of its {len(rows)} rows has a box", "classes are known by their boxes"
        )
    classes = ClassMap.from_names(names)
    index_of = {name: i for i, name in enumerate(names)}
    root = files.root if files.root.is_dir() else root_of(files.root)
    log = FaultLog()
    splits: dict[str, tuple[ImageRecord, ...]] = {}
    for split in SPLIT_NAMES:
        for source, images in _images_of(split, tables):
            first_id = len(splits.get(split, ())) + 1
            if source.in_fractions:
                log.add("boxes-in-fractions", str(source.file))
            if not source.tells_classes:
                log.add("classes-unnamed", f"{source.file}: boxes are called '{ONLY_CLASS}'")
            labelled = [
                _labelled(i, r, index_of, source.in_fractions)
                for i, r in enumerate(images, start=first_id)
            ]
            folders = image_folders(root, source.file, split)
            records = read_images(labelled, folders, source.file, log)
            splits[split] = (*splits.get(split, ()), *records)
    unread = _unread(tables.values())
    return DatasetIndex(files.root, "csv", classes, splits, log.faults(), unread)


def _images_of(
    split: str, tables: Mapping[str, CsvTable]
) -> list[tuple[CsvTable, list[list[CsvRow]]]]:
    """The rows of each image of a split, by table; tables without any are left out."""
    found = []
    for own_split, table in tables.items():
        images: dict[str, list[CsvRow]] = {}
        for row in table.rows:
            if (row.split or own_split) == split:
                images.setdefault(row.image, []).append(row)
        if images:
            found.append((table, list(images.values())))
    return found


def _labelled(
    image_id: int, rows: list[CsvRow], index_of: Mapping[str, int], in_fractions: bool
) -> LabeledImage:
    first = rows[0]
    for row in rows:
        if row.stated_wh != first.stated_wh:
            raise DataError(
                f"{row.place}: the size of {row.image} is {_size_text(row)} here and "
                f"{_size_text(first)} at {first.place}",
                "all rows of an image must state the same size",
            )
    boxes = [
        LabeledBox(row.place, row.xyxy, index_of[row.label]) for row in rows if row.xyxy is not None
    ]
    names = (first.image,)
    return LabeledImage(image_id, names, first.place, first.stated_wh, boxes, in_fractions)


def _size_text(row: CsvRow) -> str:
    return "empty" if row.stated_wh is None else f"{row.stated_wh[0]}x{row.stated_wh[1]}"


def _unread(tables: Iterable[CsvTable]) -> tuple[str, ...]:
    """Columns beyond the neutral form: for converters to tell."""
    counts: Counter[str] = Counter()
    for table in tables:
        counts.update(table.unread)
    return tuple(f"{n} rows have a '{name}', which is not kept" for name, n in counts.items())


def write_csv(index: DatasetIndex, out_dir: Path) -> list[str]:
    """Write annotations.csv, with a split column, and images/SPLIT/ below `out_dir`.

    Returns: what could not be kept, one sentence each.
    Raises: DataError if the folder cannot be written, or no box would name a class.
    """
    require_boxes(index, "CSV")
    lost = [
        *index.unread,
        *lost_crowds(index, "CSV"),
        *lost_class_ids(index, "CSV"),
        *lost_image_ids(index, "CSV"),
        *lost_areas(index),
        *lost_flags(index, "CSV"),
    ]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    try:
        for split, records in index.splits.items():
            names = unique_names(records)
            copy_images(records, names, out_dir / "images" / split, lost)
            for record, name in zip(records, names, strict=True):
                image = (f"images/{split}/{name}", record.width, record.height)
                boxes = _box_fields(record, index.classes) or [("",) * 5]
                writer.writerows([*image, *box, split] for box in boxes)
        write_text(out_dir / "annotations.csv", text.getvalue())
    except OSError as error:
        raise writing_failed(out_dir, error) from error
    return lost


def _box_fields(record: ImageRecord, classes: ClassMap) -> list[tuple[str, ...]]:
    return [
        (classes.names[class_index], *map(number_text, box))
        for box, class_index, is_crowd in zip(
            record.boxes_xyxy_px, record.class_indices, record.is_crowd, strict=True
        )
        if not is_crowd
    ]
