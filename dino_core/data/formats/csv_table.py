"""CSV tables with one box per row, to and from the neutral form.

The reader knows TensorFlow's and Roboflow's tables, RetinaNet's without header, Open Images' (in
fractions of the image's size), and others that name their columns in a common way. Corners are
pixels counted from 0 and are taken as they are.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dino_core.data.faults import FaultLog
from dino_core.data.formats.csv_files import (
    ONLY_CLASS,
    CsvFiles,
    CsvRow,
    CsvTable,
    read_table,
)
from dino_core.data.formats.images import copy_images, number_text, unique_names
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
from dino_core.data.formats.values import in_class_order
from dino_core.data.records import DatasetIndex, ImageRecord
from dino_core.detections import ClassMap
from dino_core.errors import DataError
from dino_core.files import write_text

_HEADER = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax", "split")


def read_csv(files: CsvFiles) -> DatasetIndex:
    """Read a CSV data set.

    Classes are the names of boxes, sorted (as numbers where all are); none where no box can be
    read. A row with an empty box is an image without boxes. Images are numbered from 1 in the order
    of their first rows. The split is that of the row, else of the table's name or folder, else
    "train". What cannot be used (tables, rows, sizes, images) is left out and recorded in the
    faults.
    """
    log = FaultLog()
    tables = _read_tables(files, log)
    rows = [row for table in tables.values() for row in table.rows]
    names = in_class_order({row.label for row in rows if row.xyxy is not None})
    index_of = {name: i for i, name in enumerate(names)}
    _log_without_box(rows, index_of, log)
    root = files.root if files.root.is_dir() else root_of(files.root)
    splits: dict[str, tuple[ImageRecord, ...]] = {}
    for split in SPLIT_NAMES:
        count = 0
        for table, images in _images_of(split, tables):
            labeled = [
                _labeled(image_id, rows, index_of, table.in_fractions, log)
                for image_id, rows in enumerate(images, start=count + 1)
            ]
            count += len(images)
            folders = image_folders(root, table.file, split)
            if records := read_images(labeled, folders, table.file, log):
                splits[split] = (*splits.get(split, ()), *records)
    unread = _unread(tables.values())
    classes = ClassMap.from_names(names)
    # A table without a split column is named by its file, one with such a column by its rows.
    named = {row.split or own for own, table in tables.items() for row in table.rows}
    named |= files.tables.keys() - tables.keys()
    return DatasetIndex(
        files.root,
        "csv",
        classes,
        splits,
        log.faults(),
        unread,
        named_splits=frozenset(named),
    )


def _read_tables(files: CsvFiles, log: FaultLog) -> dict[str, CsvTable]:
    """Split name to table; files that are no table of boxes are left out."""
    tables: dict[str, CsvTable] = {}
    for split, file in files.tables.items():
        try:
            table = read_table(file, log)
        except DataError as error:
            log.add_error("malformed-file", error)
            continue
        if table.in_fractions:
            log.add("boxes-in-fractions", str(file))
        if not table.names_classes:
            log.add("classes-unnamed", f"{file}: boxes are called '{ONLY_CLASS}'")
        tables[split] = table
    return tables


def _log_without_box(rows: Iterable[CsvRow], index_of: Mapping[str, int], log: FaultLog) -> None:
    """Record rows with a class and no box: a mistake, unless the class never has one.

    Medical sets have a class for nothing found ("No finding"), which is no object.
    """
    for row in rows:
        if row.xyxy is None and row.label:
            place = f"{row.place}: the class is '{row.label:.40}', but the box is empty"
            log.add("malformed-label" if row.label in index_of else "class-without-box", place)


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


def _labeled(
    image_id: int,
    rows: Sequence[CsvRow],
    index_of: Mapping[str, int],
    in_fractions: bool,
    log: FaultLog,
) -> LabeledImage:
    first = rows[0]
    boxes = [
        LabeledBox(row.place, row.xyxy, index_of[row.label], row.is_crowd)
        for row in rows
        if row.xyxy is not None
    ]
    stated_wh = _stated_size(rows, log)
    # A class that has boxes elsewhere is an object here too, whose place is lost.
    lost = sum(row.lost or (row.xyxy is None and row.label in index_of) for row in rows)
    names = (first.image,)
    return LabeledImage(image_id, names, first.place, stated_wh, boxes, in_fractions, lost)


def _stated_size(rows: Sequence[CsvRow], log: FaultLog) -> tuple[int, int] | None:
    """The size that the rows of an image state; None where they contradict each other."""
    sized = [row for row in rows if row.stated_wh is not None]
    if not sized:
        return None
    first = sized[0]
    others = [row for row in sized if row.stated_wh != first.stated_wh]
    if not others:
        return first.stated_wh
    here, there = _size_text(others[0]), _size_text(first)
    log.add(
        "malformed-size",
        f"{others[0].place}: the size of {first.image} is {here} here and {there} at {first.place}",
    )
    return None


def _size_text(row: CsvRow) -> str:
    return "x".join(map(str, row.stated_wh or ()))


def _unread(tables: Iterable[CsvTable]) -> tuple[str, ...]:
    """The columns that the neutral form has no place for; converters report them."""
    counts: Counter[str] = Counter()
    for table in tables:
        counts.update(table.unread)
    return tuple(f"{n} rows have a '{name}', which is not kept" for name, n in counts.items())


def write_csv(index: DatasetIndex, out_dir: Path) -> list[str]:
    """Write annotations.csv, with a split column, and images/SPLIT/ below `out_dir`.

    Returns:
        What could not be kept, one sentence each.

    Raises:
        OSError: the folder cannot be written.
        DataError: there is no box, so that no class is named.
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
    for split, records in index.splits.items():
        names = unique_names(records)
        copy_images(records, names, out_dir / "images" / split, lost)
        for record, name in zip(records, names, strict=True):
            image = (f"images/{split}/{name}", record.width, record.height)
            boxes = _box_fields(record, index.classes) or [("",) * 5]
            writer.writerows([*image, *box, split] for box in boxes)
    write_text(out_dir / "annotations.csv", text.getvalue())
    return lost


def _box_fields(record: ImageRecord, classes: ClassMap) -> list[tuple[str, ...]]:
    return [
        (classes.names[class_index], *map(number_text, box))
        for box, class_index, is_crowd in zip(
            record.boxes_xyxy_px, record.class_indices, record.is_crowd, strict=True
        )
        if not is_crowd
    ]
