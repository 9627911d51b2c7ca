"""The CSV tables of a data set: where they lie, and their rows."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_core.data.faults import FaultLog
from dino_core.data.formats.csv_columns import Columns, columns_of, split_line
from dino_core.data.formats.layout import ROBOFLOW_CSV, find_annotations, split_in, split_of
from dino_core.data.formats.values import is_true, number, read_text, start_of
from dino_core.errors import DataError

CSV_LAYOUT = (
    "a .csv file with one box per row, e.g. filename,class,xmin,ymin,xmax,ymax and maybe split, "
    "or {train,valid}/_annotations.csv"
)
ONLY_CLASS = "object"
_SUFFIXES = (".csv", ".tsv")
_MOST_FRACTION = 1.001  # rounding may push x + w over 1
_NO_SPLIT = ("", "UNASSIGNED")  # the second is AutoML's


@dataclass(frozen=True)
class CsvFiles:
    """What there is to read: the data set's folder or file, and split name to table."""

    root: Path
    tables: Mapping[str, Path]


@dataclass(frozen=True)
class CsvRow:
    """One row: a box, or an image without boxes where `xyxy` is None.

    Attributes:
        place: File and line.
        image: The image's file name, as stated.
        label: The class; where there is no box, empty or what the row says about the image.
        xyxy: Corners, in pixels or, as the whole table, in fractions of the image's size.
        stated_wh: Width and height of the image; None where they are not stated.
        split: The row's own split; None where it states none.
        is_crowd: Whether the box is drawn around a group.
    """

    place: str
    image: str
    label: str
    xyxy: tuple[float, float, float, float] | None
    stated_wh: tuple[int, int] | None
    split: str | None
    is_crowd: bool = False
    lost: bool = False


@dataclass(frozen=True)
class CsvTable:
    """One file.

    Attributes:
        file: Its path.
        rows: Those that can be read, in file order.
        unread: Name of each column that is not read to the number of rows that fill it.
        in_fractions: Whether the boxes are fractions of the image's size: they all lie within the
            first pixel, and are not whole numbers.
        names_classes: Whether a column states the class; else all boxes are of `ONLY_CLASS`.
    """

    file: Path
    rows: tuple[CsvRow, ...]
    unread: Mapping[str, int]
    in_fractions: bool
    names_classes: bool


def find_csv(path: Path) -> CsvFiles | None:
    """The tables of a CSV data set, a folder or one file; None where there are none.

    Raises:
        DataError: two files claim the same split.
    """
    if path.is_file():
        is_table = path.suffix.lower() in _SUFFIXES
        return CsvFiles(path, {split_of(path) or "train": path}) if is_table else None
    tables = find_annotations(path, ROBOFLOW_CSV, _SUFFIXES, _tables_of_boxes)
    return CsvFiles(path, tables) if tables else None


def _tables_of_boxes(files: Sequence[Path]) -> Sequence[Path]:
    return [file for file in files if _holds_boxes(file)]


def _holds_boxes(file: Path) -> bool:
    start = start_of(file, 4096)
    if start is None:
        return True
    _, first = split_line(start.decode("utf-8-sig", "replace").partition("\n")[0])
    return columns_of(first) is not None


def read_table(file: Path, log: FaultLog) -> CsvTable:
    """Read one table; rows that cannot be read are left out.

    A row whose box or class cannot be read still names its image, so the image stays.

    Args:
        file: The table.
        log: Records malformed rows and sizes, each with its line.

    Raises:
        DataError: the file cannot be read as text, or its columns are unknown.
    """
    text = read_text(file)
    delimiter, first = split_line(text.partition("\n")[0])
    columns = columns_of(first)
    if columns is None:
        raise DataError(
            f"{file} line 1: the columns are {', '.join(first) or 'none':.120}, "
            "expected those of an image and a box",
            "e.g. filename,class,xmin,ymin,xmax,ymax",
        )
    rows: list[CsvRow] = []
    unread: Counter[str] = Counter()
    for line, fields in _split_rows(file, text, delimiter, columns, log):
        row = _read_row(fields, columns, f"{file} line {line}", log)
        if row is not None:
            rows.append(row)
            unread.update(_unread(fields, columns))
    return CsvTable(file, tuple(rows), unread, _in_fractions(rows), columns.label is not None)


class _Lines:
    """The lines of a text for `csv.reader`; set `taken` to a smaller number to read some again."""

    def __init__(self, text: str) -> None:
        self._lines = list(io.StringIO(text, newline=""))
        self.taken = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.taken == len(self._lines):
            raise StopIteration
        self.taken += 1
        return self._lines[self.taken - 1]


def _split_rows(
    file: Path, text: str, delimiter: str, columns: Columns, log: FaultLog
) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row that can be split into the right number of fields."""
    lines = _Lines(text)
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        line = lines.taken + 1
        try:
            fields = [field.strip() for field in next(reader)]
            if (line > 1 or not columns.names) and any(fields):
                _require_fields(fields, columns)
                yield line, fields
        except StopIteration:
            return
        except (csv.Error, DataError) as error:
            log.add("malformed-label", f"{file} line {line}: {error}")
            # A quotation mark that is never closed makes one row of all lines that follow, so the
            # next row is looked for in the next line.
            lines.taken = line


def _require_fields(fields: Sequence[str], columns: Columns) -> None:
    if any("\n" in fields[i] for i in columns.read if i < len(fields)):
        raise DataError("a field spans several lines", "close its quotation marks")
    if len(fields) < columns.count or any(fields[columns.count :]):
        raise DataError(
            f"{len(fields)} fields, expected {columns.count}",
            "a field that holds the delimiter must be in quotation marks",
        )


def _read_row(fields: Sequence[str], columns: Columns, place: str, log: FaultLog) -> CsvRow | None:
    """One row, without its box where that cannot be read; None where its image is not known."""
    try:
        image = fields[columns.image]
        if not image:
            raise DataError(f"{place}: the image's name is empty", "every row needs its image")
        split = _read_split(fields, columns, place)
    except DataError as error:
        log.add_error("malformed-label", error)
        return None
    lost = False
    try:
        label, xyxy = _read_label(fields, columns, place)
    except DataError as error:
        log.add_error("malformed-label", error)
        label, xyxy, lost = "", None, True
    try:
        stated_wh = _read_size(fields, columns, place)
    except DataError as error:
        log.add_error("malformed-size", error)
        stated_wh = None
    is_crowd = columns.crowd is not None and is_true(fields[columns.crowd])
    return CsvRow(place, image, label, xyxy, stated_wh, split, is_crowd, lost)


def _read_split(fields: Sequence[str], columns: Columns, place: str) -> str | None:
    if columns.split is None or fields[columns.split] in _NO_SPLIT:
        return None
    word = fields[columns.split]
    split = split_in(word)
    if split is None:
        raise DataError(f"{place}: the split is '{word:.40}', expected train, val or test")
    return split


def _read_label(
    fields: Sequence[str], columns: Columns, place: str
) -> tuple[str, tuple[float, float, float, float] | None]:
    """Class and corners; an empty class and None for an image without boxes."""
    xyxy = _read_box(fields, columns, place)
    if columns.label is None:
        return ("" if xyxy is None else ONLY_CLASS), xyxy
    label = fields[columns.label]
    if xyxy is not None and not label:
        raise DataError(f"{place}: the box has no class", "every box needs its class")
    return label, xyxy


def _read_box(
    fields: Sequence[str], columns: Columns, place: str
) -> tuple[float, float, float, float] | None:
    """The corners; None where all fields of the box are empty."""
    cells = [fields[i] for i in columns.box]
    if not any(cells):
        return None
    if len(cells) == 1:
        numbers = _four_numbers(cells[0], f"{place}: {columns.name_of(columns.box[0])}")
    else:
        numbers = [_pixels(fields, i, columns, place) for i in columns.box]
    a, b, c, d = numbers
    if columns.box_layout == "corners":
        return a, b, c, d
    if columns.box_layout == "center and size":
        a, b = a - c / 2, b - d / 2
    return a, b, a + c, b + d


def _four_numbers(text: str, what: str) -> list[float]:
    words = text.strip("[]()").replace(",", " ").split()
    numbers = [value for value in map(number, words) if value is not None]
    if len(words) != 4 or len(numbers) != 4:
        raise DataError(f"{what} is '{text:.60}', expected four numbers [x, y, w, h]")
    return numbers


def _read_size(fields: Sequence[str], columns: Columns, place: str) -> tuple[int, int] | None:
    """Width and height as stated; None where one of them is empty."""
    if columns.size is None or not all(fields[i] for i in columns.size):
        return None
    width, height = (int(_pixels(fields, i, columns, place)) for i in columns.size)
    if width < 1 or height < 1:
        raise DataError(f"{place}: size {width}x{height}, expected at least one pixel")
    return (width, height)


def _pixels(fields: Sequence[str], field: int, columns: Columns, place: str) -> float:
    value = number(fields[field])
    if value is None:
        found = f"{columns.name_of(field)} is '{fields[field]:.40}'"
        raise DataError(f"{place}: {found}, expected a number of pixels")
    return value


def _unread(fields: Sequence[str], columns: Columns) -> list[str]:
    """The names of columns that are filled but not read."""
    return [name for i, name in enumerate(columns.names) if i not in columns.read and fields[i]]


def _in_fractions(rows: Sequence[CsvRow]) -> bool:
    numbers = [value for row in rows if row.xyxy is not None for value in row.xyxy]
    whole = all(value.is_integer() for value in numbers)
    return bool(numbers) and not whole and max(numbers) <= _MOST_FRACTION
