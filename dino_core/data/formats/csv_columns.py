"""Which field of a CSV row is what: by the names of a header, or by the first row itself."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Literal

from dino_core.data.formats.values import number
from dino_core.processing.image_files import IMAGE_SUFFIXES

_DELIMITERS = ",;\t|"
BoxLayout = Literal["corners", "start and size", "center and size"]

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
_CORNERS_FROM_ZERO = (("x0",), ("y0",), ("x1",), ("y1",))  # "x1" is the left one elsewhere
_START = (("x", "bboxx", *_CORNERS[0]), ("y", "bboxy", *_CORNERS[1]))
_CENTER = (("xcenter", "xcentre", "centerx", "cx"), ("ycenter", "ycentre", "centery", "cy"))
_EXTENT = (("w", "bboxw", "bboxwidth", "boxwidth"), ("h", "bboxh", "bboxheight", "boxheight"))
_SIZE = (("width", "imagewidth", "imgwidth"), ("height", "imageheight", "imgheight"))
_SPLIT = ("split", "subset", "set", "partition")
_CROWD = ("isgroupof", "iscrowd", "crowd")  # Open Images' and COCO's word for it
_WHOLE_BOX = ("bbox", "box", "boundingbox")  # "[x, y, w, h]" in one field

# In this order: "width" is the image's where the box has columns of its own for its extent.
_BOXES: tuple[tuple[BoxLayout, tuple[tuple[str, ...], ...]], ...] = (
    ("corners", _CORNERS),
    ("corners", _CORNERS_FROM_ZERO),
    ("center and size", (*_CENTER, *_EXTENT)),
    ("start and size", (*_START, *_EXTENT)),
    ("center and size", (*_CENTER, *_SIZE)),
    ("start and size", (*_START, *_SIZE)),
    ("start and size", (_WHOLE_BOX,)),
)


@dataclass(frozen=True)
class Columns:
    """Which field of a row is what, by index.

    Attributes:
        names: The header's names; empty where there is no header.
        count: How many fields a row has.
        image: The image's file name.
        label: The class; None where the table has no such column.
        box: Four fields, or one that holds all four numbers.
        box_layout: What the four numbers of a box are.
        size: Width and height of the image; None where the table does not state them.
        split: The split; None where the table has no such column.
        crowd: Whether the box is of a group; None where the table has no such column.
    """

    names: tuple[str, ...]
    count: int
    image: int
    label: int | None
    box: tuple[int, ...]
    box_layout: BoxLayout
    size: tuple[int, int] | None = None
    split: int | None = None
    crowd: int | None = None

    @cached_property
    def read(self) -> frozenset[int]:
        """The fields that are read."""
        read = (self.image, self.label, *self.box, *(self.size or ()), self.split, self.crowd)
        return frozenset(field for field in read if field is not None)

    def name_of(self, field: int) -> str:
        """The name of a column, for messages."""
        return self.names[field] if self.names else f"field {field + 1}"


# Tables without header: RetinaNet's, the same with the class second, SKU-110K's, makesense.ai's,
# AutoML's. Tools that write no header are recognized by which fields hold numbers.
_CLASS_LAST = Columns((), 6, 0, 5, (1, 2, 3, 4), "corners")
_CLASS_SECOND = Columns((), 6, 0, 1, (2, 3, 4, 5), "corners")
_SIZE_LAST = Columns((), 8, 0, 5, (1, 2, 3, 4), "corners", (6, 7))
_CLASS_FIRST = Columns((), 8, 5, 0, (1, 2, 3, 4), "start and size", (6, 7))
_SPLIT_FIRST = Columns((), 11, 1, 2, (3, 4, 7, 8), "corners", split=0)


def split_line(line: str) -> tuple[str, list[str]]:
    """The delimiter and the fields of a table's first line.

    The delimiter is the one that gives the most fields. There are none where the line is not text,
    or is one enormous field.
    """
    split = {delimiter: _fields(line, delimiter) for delimiter in _DELIMITERS}
    return max(split.items(), key=lambda each: len(each[1]))


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def columns_of(first: Sequence[str]) -> Columns | None:
    """The columns by the fields of a table's first line; None where it is no table of boxes."""
    names = tuple(name.lower().replace(" ", "_").replace("-", "_") for name in first)
    column_of: dict[str, int] = {}
    for i, name in enumerate(names):
        # Where two columns have one name, the first counts. "x_min", "xMin" and "x min" are the
        # same.
        column_of.setdefault(re.sub(r"[\W_]", "", name), i)
    image = _column(column_of, _IMAGE)
    # A table of boxes must name its images, so a first line without such a column is no header.
    if image is None:
        return _without_header(first)
    found = _box_columns(column_of)
    if found is None:
        return None
    box_layout, box = found
    size = _all_columns(column_of, _SIZE)
    return Columns(
        names=names,
        count=len(names),
        image=image,
        label=_column(column_of, _LABEL),
        box=box,
        box_layout=box_layout,
        # "width" and "height" cannot be the box's and the image's at the same time.
        size=None if size is None or set(size) & set(box) else (size[0], size[1]),
        split=_column(column_of, _SPLIT),
        crowd=_column(column_of, _CROWD),
    )


def _box_columns(column_of: Mapping[str, int]) -> tuple[BoxLayout, tuple[int, ...]] | None:
    for box_layout, known in _BOXES:
        box = _all_columns(column_of, known)
        if box is not None:
            return box_layout, box
    return None


def _column(column_of: Mapping[str, int], known: Sequence[str]) -> int | None:
    """The column of the first of the known names that the header has."""
    return next((column_of[name] for name in known if name in column_of), None)


def _all_columns(
    column_of: Mapping[str, int], known: Sequence[Sequence[str]]
) -> tuple[int, ...] | None:
    """One column for each of several sets of names; None where one of them is missing."""
    columns = [_column(column_of, each) for each in known]
    found = tuple(column for column in columns if column is not None)
    return found if len(found) == len(columns) else None


def _is_image_name(text: str) -> bool:
    return PurePosixPath(text).suffix.lower() in IMAGE_SUFFIXES


def _without_header(first: Sequence[str]) -> Columns | None:
    """The columns of a table whose first line is already a row of an image, a box and its class."""
    numbers = [i for i, text in enumerate(first) if number(text) is not None]
    if len(first) == 6 and first[0]:
        # RetinaNet writes an image without objects as a row of empty fields.
        if set(_CLASS_LAST.box) <= set(numbers) or not any(first[1:]):
            return _CLASS_LAST
        return _CLASS_SECOND if set(_CLASS_SECOND.box) <= set(numbers) else None
    if len(first) == 8 and numbers == [1, 2, 3, 4, 6, 7]:
        return _SIZE_LAST if _is_image_name(first[0]) else _CLASS_FIRST
    return _SPLIT_FIRST if len(first) == 11 and numbers == [3, 4, 7, 8] else None
