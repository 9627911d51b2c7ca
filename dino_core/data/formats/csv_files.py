"""The CSV tables of a data set: where they lie, their delimiter, their columns and their rows."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dino_core.data.formats.layout import (
    ROBOFLOW_CSV,
    find_annotations,
    split_in,
    split_of,
)
from dino_core.errors import DataError

CSV_LAYOUT = (
    "a .csv file with one box a row, e.g. filename,class,xmin,ymin,xmax,ymax and maybe split, "
    "or {train,valid}/_annotations.csv"
)
_SUFFIXES = (".csv", ".tsv")
_DELIMITERS = ",;\t|"
_MOST_FRACTION = 1.001  # rounding may push x + w over 1
# Names of columns, lower case, letters and digits only.
_IMAGE = (
    "filename", "image", "imagepath", "imgpath", "imagename", "path", "filepath", "file", "img",
    "imagefile", "imgname", "imageid", "imgid", "frame",
)  # fmt: skip
_LABEL = (
    "class", "label", "name", "classname", "category", "categoryname", "labelname", "object",
    "classid", "categoryid", "labelid",
)  # fmt: skip
_CORNERS = (
    ("xmin", "x1", "left"),
    ("ymin", "y1", "top"),
    ("xmax", "x2", "right"),
    ("ymax", "y2", "bottom"),
)
_START = (("x", "bboxx", *_CORNERS[0]), ("y", "bboxy", *_CORNERS[1]))
_CENTRE = (("xcenter", "xcentre", "centerx", "cx"), ("ycenter", "ycentre", "centery", "cy"))
_EXTENT = (("w", "bboxw", "bboxwidth", "boxwidth"), ("h", "bboxh", "bboxheight", "boxheight"))
_WHOLE_BOX = ("bbox", "box", "boundingbox")  # "[x, y, w, h]" in one field
_SIZE = (("width", "imagewidth", "imgwidth"), ("height", "imageheight", "imgheight"))
_SPLIT = ("split", "subset", "set", "partition")
ONLY_CLASS = "object"

BoxForm = Literal["corners", "start and size", "centre and size"]


@dataclass(frozen=True)
class _Columns:
    """Which field of a row is what; `names` are the header's, empty where there is none."""

    names: tuple[str, ...]
    count: int
    image: int
    label: int | None
    box: tuple[int, ...]  # four, or one that holds all four numbers
    box_form: BoxForm
    size: tuple[int, int] | None = None
    split: int | None = None


# Tables without header: RetinaNet's, the same with the class second, makesense.ai's, AutoML's.
_CLASS_LAST = _Columns((), 6, 0, 5, (1, 2, 3, 4), "corners")
_CLASS_SECOND = _Columns((), 6, 0, 1, (2, 3, 4, 5), "corners")
_CLASS_FIRST = _Columns((), 8, 5, 0, (1, 2, 3, 4), "start and size", (6, 7))
_SPLIT_FIRST = _Columns((), 11, 1, 2, (3, 4, 7, 8), "corners", split=0)


@dataclass(frozen=True)
class CsvRow:
    """One row: a box, or an image without boxes where `xyxy` is None."""

    place: str
    image: str
    label: str
    xyxy: tuple[float, float, float, float] | None
    stated_wh: tuple[int, int] | None
    split: str | None


@dataclass(frozen=True)
class CsvTable:
    """One file: its rows, and how many of them fill each column that is not read.

    Boxes all within the first pixel, and not whole, are fractions of the image's size. Where no
    column tells a class, all boxes are of the class `ONLY_CLASS`.
    """

    file: Path
    rows: tuple[CsvRow, ...]
    unread: Mapping[str, int]
    in_fractions: bool
    tells_classes: bool


@dataclass(frozen=True)
class CsvFiles:
    """What there is to read: the data set's folder or file, and split name to table."""

    root: Path
    tables: Mapping[str, Path]


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
    try:
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            first = _split_line(stream.readline(4096))
    except OSError:
        return True  # let the reader say what is wrong
    return _columns_of(first) is not None


def _split_line(line: str) -> list[str]:
    """The fields of the first line, by the delimiter that gives the most."""
    return max((_fields(line, d) for d in _DELIMITERS), key=len)


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:  # no text, or one enormous field
        return []


def _columns_of(first: Sequence[str]) -> _Columns | None:
    """The columns that a first line tells; None if it is no table of boxes."""
    names = tuple(name.lower().replace(" ", "_").replace("-", "_") for name in first)
    plain = [re.sub(r"[\W_]", "", name) for name in names]

    def column(known: Sequence[str]) -> int | None:
        return next((plain.index(name) for name in known if name in plain), None)

    def columns(*known: Sequence[str]) -> list[int | None]:
        return [column(each) for each in known]

    image, label, split = columns(_IMAGE, _LABEL, _SPLIT)
    size = columns(*_SIZE)
    if image is None:
        return _headerless(first)
    box = columns(*_CORNERS)
    form: BoxForm = "corners"
    if None in box:
        centre, extent = columns(*_CENTRE), columns(*_EXTENT)
        if None in extent:  # width and height are the box's
            extent, size = size, [None, None]
        form = "start and size" if None in centre else "centre and size"
        box = [*(columns(*_START) if None in centre else centre), *extent]
    whole = column(_WHOLE_BOX)
    if None in box and whole is not None:
        box, size, form = [whole], columns(*_SIZE), "start and size"
    fields = tuple(field for field in box if field is not None)
    if len(fields) != len(box):
        return None
    width, height = size
    size_wh = None if width is None or height is None else (width, height)
    return _Columns(names, len(names), image, label, fields, form, size_wh, split)


def _headerless(first: Sequence[str]) -> _Columns | None:
    """The columns of a table whose first line is already a row of an image, a box and its class."""
    numbers = [i for i, text in enumerate(first) if _number(text) is not None]
    if len(first) == 6 and first[0]:
        if set(_CLASS_LAST.box) <= set(numbers) or not any(first[1:]):
            return _CLASS_LAST
        return _CLASS_SECOND if set(_CLASS_SECOND.box) <= set(numbers) else None
    if len(first) == 8 and numbers == [1, 2, 3, 4, 6, 7]:
        return _CLASS_FIRST
    return _SPLIT_FIRST if len(first) == 11 and numbers == [3, 4, 7, 8] else None


def read_table(file: Path) -> CsvTable:
    """Read one table.

    Raises:
        DataError: it cannot be read, its columns are unknown, or a row is malformed, naming the
            line.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: cannot be read as text ({error})", "save it as UTF-8") from error
    line = text.partition("\n")[0]
    first = _split_line(line)
    columns = _columns_of(first)
    if columns is None:
        raise DataError(
            f"{file} line 1: the columns are {', '.join(first) or 'none':.120}, "
            "which do not tell an image, a class and a box",
            "expected e.g. filename,class,xmin,ymin,xmax,ymax",
        )
    delimiter = next(d for d in _DELIMITERS if _fields(line, d) == first)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[CsvRow] = []
    unread: Counter[str] = Counter()
    try:
        for fields in reader:
            fields = [field.strip() for field in fields]
            if not any(fields) or (columns.names and reader.line_num == 1):
                continue
            rows.append(_read_row(fields, columns, f"{file} line {reader.line_num}"))
            unread.update(_unread(fields, columns))
    except csv.Error as error:
        raise DataError(f"{file} line {reader.line_num}: not valid CSV ({error})") from error
    return CsvTable(file, tuple(rows), unread, _in_fractions(rows), columns.label is not None)


def _read_row(fields: list[str], columns: _Columns, place: str) -> CsvRow:
    expected = columns.count
    if len(fields) < expected or any(fields[expected:]):
        raise DataError(
            f"{place}: {len(fields)} fields, expected {expected}",
            "a field that holds the delimiter must be in quotes",
        )
    image = fields[columns.image]
    if not image:
        raise DataError(f"{place}: the image's name is empty", "every row needs its image")
    box = _box_of(fields, columns, place)
    if columns.label is not None:
        label = fields[columns.label]
    else:
        label = ONLY_CLASS if box is not None else ""
    if box is not None:
        if not label:
            raise DataError(f"{place}: the box has no class", "every box needs its class")
    elif label:
        raise DataError(
            f"{place}: the class is '{label:.40}', but the box is empty",
            "leave the class empty too for an image without boxes",
        )
    size = None
    if columns.size is not None and all(fields[i] for i in columns.size):
        width, height = (int(_checked(fields[i], i, columns, place)) for i in columns.size)
        if width < 1 or height < 1:
            raise DataError(f"{place}: size {width}x{height}, expected at least one pixel")
        size = (width, height)
    return CsvRow(place, image, label, box, size, _split_of_row(fields, columns, place))


def _box_of(
    fields: list[str], columns: _Columns, place: str
) -> tuple[float, float, float, float] | None:
    """The corners that a row tells; None where all its box's fields are empty."""
    cells = [fields[i] for i in columns.box]
    if not any(cells):
        return None
    if len(cells) == 1:
        numbers = [_number(text) for text in cells[0].strip("[]()").replace(",", " ").split()]
        found = [number for number in numbers if number is not None]
        if len(found) != len(numbers) or len(found) != 4:
            raise DataError(
                f"{place}: {columns.names[columns.box[0]]} is '{cells[0]:.60}', expected four "
                "numbers [x, y, w, h]"
            )
    else:
        found = [_checked(fields[i], i, columns, place) for i in columns.box]
    a, b, c, d = found
    if columns.box_form == "corners":
        return a, b, c, d
    if columns.box_form == "centre and size":
        a, b = a - c / 2, b - d / 2
    return a, b, a + c, b + d


def _checked(text: str, column: int, columns: _Columns, place: str) -> float:
    value = _number(text)
    if value is None:
        name = columns.names[column] if columns.names else f"field {column + 1}"
        raise DataError(f"{place}: {name} is '{text:.40}', expected a number of pixels")
    return value


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _split_of_row(fields: list[str], columns: _Columns, place: str) -> str | None:
    if columns.split is None or fields[columns.split] in ("", "UNASSIGNED"):  # AutoML's word
        return None
    split = split_in(fields[columns.split])
    if split is None:
        raise DataError(
            f"{place}: the split is '{fields[columns.split]:.40}', expected train, val or test"
        )
    return split


def _unread(fields: Sequence[str], columns: _Columns) -> list[str]:
    read = {columns.image, columns.label, *columns.box, *(columns.size or ()), columns.split}
    return [name for i, name in enumerate(columns.names) if i not in read and fields[i]]


def _in_fractions(rows: Sequence[CsvRow]) -> bool:
    numbers = [number for row in rows if row.xyxy is not None for number in row.xyxy]
    whole = all(number.is_integer() for number in numbers)
    return bool(numbers) and not whole and max(numbers) <= _MOST_FRACTION
