"""labelme's files, one JSON per image with its shapes, to and from the neutral form.

The format is that of labelme 5 (https://github.com/wkentaro/labelme, labelme/label_file.py), which
X-AnyLabeling and others write too: corners are pixels of the upright image, counted from 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dino_core.data.faults import FaultLog
from dino_core.data.formats.images import copy_images, number_text, unique_names, with_suffixes
from dino_core.data.formats.json_file import load_json
from dino_core.data.formats.labeled import LabeledImage, read_images
from dino_core.data.formats.layout import files_in, folders_by_split, image_folders
from dino_core.data.formats.losses import (
    lost_areas,
    lost_class_ids,
    lost_crowds,
    lost_image_ids,
    require_boxes,
)
from dino_core.data.formats.record import LabeledBox
from dino_core.data.formats.values import (
    LARGEST,
    clean,
    in_class_order,
    is_true,
    number,
    start_of,
    whole_number,
)
from dino_core.data.records import DatasetIndex, ImageRecord
from dino_core.detections import ClassMap
from dino_core.errors import DataError
from dino_core.files import write_text
from dino_core.limits import shown

LABELME_LAYOUT = "a .json of labelme for each image, beside it or in a folder of labels"
_KEYS = (b'"shapes"', b'"imagePath"', b'"imageData"')
_START = 4096  # bytes of a file that are looked at
_LOOKED_AT = 50  # files of a folder that are looked at, until one is labelme's
_VERSION = "5.4.1"  # of the format that is written


@dataclass(frozen=True)
class LabelmeFiles:
    """What there is to read: the data set's folder, and split name to its label files."""

    root: Path
    splits: Mapping[str, list[Path]]


@dataclass(frozen=True)
class _Shape:
    """One object of a file; several shapes with one group id are parts of one object."""

    place: str
    label: str
    xyxy: tuple[float, float, float, float]
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Labels:
    """One file: the image that it names, its size as stated, its objects, and how many are lost."""

    file: Path
    image: str
    stated_wh: tuple[int, int] | None
    shapes: tuple[_Shape, ...] = field(default=())
    lost: int = 0


def find_labelme(path: Path) -> LabelmeFiles | None:
    """The label files of a folder of labelme's; None where it holds none."""
    if not path.is_dir():
        return None
    folders = folders_by_split(path, _holds_labelme)
    splits = {split or "train": _json_files(folder) for split, folder in folders.items()}
    return LabelmeFiles(path, splits) if splits else None


def _json_files(folder: Path) -> list[Path]:
    return files_in(folder, (".json",))


def _holds_labelme(folder: Path) -> bool:
    return any(map(_looks_like_labelme, _json_files(folder)[:_LOOKED_AT]))


def _looks_like_labelme(file: Path) -> bool:
    """Whether a file starts as labelme's do; the picture inside it may hide the shapes."""
    start = start_of(file, _START)
    if start is None:
        return False
    return sum(key in start for key in _KEYS) >= 2 or (_KEYS[0] in start and len(start) == _START)


def read_labelme(files: LabelmeFiles) -> DatasetIndex:
    """Read a labelme data set.

    Rectangles are boxes; polygons, circles and masks become the boxes around them, parts of one
    object (one group id) one box. Points and lines have no area and are left out. Classes are the
    labels found, sorted. Images are numbered from 1 in the order of their files.
    """
    log = FaultLog()
    read = {split: list(_read_files(members, log)) for split, members in files.splits.items()}
    found = {s.label for split in read.values() for each in split for s in each.shapes}
    names = in_class_order(found)
    index_of = {name: i for i, name in enumerate(names)}
    splits = {}
    for split, members in read.items():
        folder = files.splits[split][0].parent
        folders = [folder, *image_folders(files.root, files.splits[split][0], split)]
        images = (_labeled(i, each, index_of) for i, each in enumerate(members, start=1))
        if records := read_images(images, list(dict.fromkeys(folders)), folder, log):
            splits[split] = records
    classes, named = ClassMap.from_names(names), frozenset(files.splits)
    return DatasetIndex(files.root, "labelme", classes, splits, log.faults(), named_splits=named)


def _read_files(files: Sequence[Path], log: FaultLog) -> Iterator[_Labels]:
    """What the files say, without those that cannot be read: their images are left out."""
    for file in files:
        try:
            data = load_json(file)
            if not isinstance(data, dict) or not isinstance(data.get("shapes"), list):
                raise DataError(f"{file}: no list of shapes", "is it a file of labelme's?")
        except DataError as error:
            log.add_error("malformed-file", error)
            continue
        stated = data.get("imagePath")
        image = clean(stated).replace("\\", "/") if isinstance(stated, str) else ""
        read = list(_read_shapes(file, data["shapes"], log))
        lost = len(data["shapes"]) - len(read)
        shapes = tuple(_joined(read, log))
        yield _Labels(file, image, _stated_size(file, data, log), shapes, lost)


def _stated_size(file: Path, data: Mapping[str, Any], log: FaultLog) -> tuple[int, int] | None:
    stated = data.get("imageWidth"), data.get("imageHeight")
    if None in stated:
        return None
    width, height = map(whole_number, stated)
    if not width or not height or min(width, height) < 0 or max(width, height) > LARGEST:
        log.add("malformed-size", f"{file}: imageWidth and imageHeight are {shown(stated)}")
        return None
    return width, height


def _read_shapes(file: Path, shapes: Sequence[Any], log: FaultLog) -> Iterator[tuple[Any, _Shape]]:
    """Group id and content of each shape that can be read."""
    for i, shape in enumerate(shapes):
        place = f"{file}: shapes[{i}]"
        try:
            if not isinstance(shape, dict):
                raise DataError(f"{place} is {shown(shape)}, expected an object")
            label = shape.get("label")
            if not isinstance(label, str) or not label.strip():
                raise DataError(f"{place}: the label is {shown(label)}, expected a class name")
            kind = shape.get("shape_type", "polygon")
            box = _box_around(kind, _points(shape.get("points"), place), place)
        except DataError as error:
            log.add_error("malformed-label", error)
            continue
        if kind != "rectangle":
            log.add("outline-label", f"{place}: {kind}")
        flags = shape.get("flags")
        flags = flags if isinstance(flags, dict) else {}
        marked = {clean(name) for name, value in flags.items() if is_true(value)}
        yield shape.get("group_id"), _Shape(place, clean(label).strip(), box, frozenset(marked))


def _points(value: Any, place: str) -> list[tuple[float, float]]:
    try:
        pairs = [(number(x), number(y)) for x, y in value]
    except (TypeError, ValueError):
        raise DataError(f"{place}: points are {shown(value)}, expected [[x, y], ...]") from None
    points = [(x, y) for x, y in pairs if x is not None and y is not None]
    if not points or len(points) < len(pairs):
        raise DataError(f"{place}: points are {shown(value)}, expected numbers of pixels")
    return points


def _box_around(
    kind: Any, points: Sequence[tuple[float, float]], place: str
) -> tuple[float, float, float, float]:
    """The corners of the box around a shape."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if kind == "circle" and len(points) == 2:  # the center and a point on the edge
        radius = math.hypot(xs[1] - xs[0], ys[1] - ys[0])
        return xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius
    least = {"rectangle": 2, "mask": 2, "polygon": 3, "oriented_rectangle": 4, "rotation": 4}
    if not isinstance(kind, str) or kind not in least:
        name = kind if isinstance(kind, str) else shown(kind)
        raise DataError(
            f"{place}: a {name:.40} has no area", "draw a rectangle, polygon, circle or mask"
        )
    if len(points) < least[kind]:
        raise DataError(f"{place}: {len(points)} points, a {kind} has at least {least[kind]}")
    return min(xs), min(ys), max(xs), max(ys)


def _joined(shapes: Iterable[tuple[Any, _Shape]], log: FaultLog) -> Iterator[_Shape]:
    """The objects: each shape without a group id, and the box around all parts of a group."""
    groups: dict[tuple[str, str], list[_Shape]] = {}
    for i, (group, shape) in enumerate(shapes):
        key = ("shape", str(i)) if group is None else (f"group {group}", shape.label)
        groups.setdefault(key, []).append(shape)
    for parts in groups.values():
        first = parts[0]
        if len(parts) > 1:
            log.add("outline-label", f"{first.place}: {len(parts)} parts of one object")
        x1, y1, x2, y2 = zip(*(part.xyxy for part in parts), strict=True)
        flags = frozenset[str]().union(*(part.flags for part in parts))
        yield _Shape(first.place, first.label, (min(x1), min(y1), max(x2), max(y2)), flags)


def _labeled(image_id: int, labels: _Labels, index_of: Mapping[str, int]) -> LabeledImage:
    names = [name for name in (labels.image, *with_suffixes(labels.file.stem)) if name]
    boxes = [
        LabeledBox(shape.place, shape.xyxy, index_of[shape.label], flags=shape.flags)
        for shape in labels.shapes
    ]
    place = str(labels.file)
    return LabeledImage(image_id, names, place, labels.stated_wh, boxes, lost=labels.lost)


def write_labelme(index: DatasetIndex, out_dir: Path) -> list[str]:
    """Write SPLIT/NAME.json beside a copy of each image below `out_dir`.

    Returns: What could not be kept, one sentence each.
    Raises: OSError if the folder cannot be written; DataError if no box would name a class.
    """
    require_boxes(index, "labelme")
    lost = [
        *index.unread,
        *lost_crowds(index, "labelme"),
        *lost_class_ids(index, "labelme"),
        *lost_image_ids(index, "labelme"),
        *lost_areas(index),
    ]
    for split, records in index.splits.items():
        names = unique_names(records)
        copy_images(records, names, out_dir / split, lost)
        for record, name in zip(records, names, strict=True):
            text = json.dumps(_as_labelme(record, name, index.classes), ensure_ascii=False)
            write_text((out_dir / split / name).with_suffix(".json"), f"{text}\n")
    return lost


def _as_labelme(record: ImageRecord, name: str, classes: ClassMap) -> dict[str, Any]:
    shapes = []
    for i, box in enumerate(record.boxes_xyxy_px):
        if record.is_crowd[i]:
            continue
        x1, y1, x2, y2 = (float(number_text(value)) for value in box)
        shapes.append(
            {
                "label": classes.names[record.class_indices[i]],
                "points": [[x1, y1], [x2, y2]],
                "group_id": None,
                "shape_type": "rectangle",
                "flags": {flag: True for flag, marked in record.flags.items() if marked[i]},
            }
        )
    return {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": name,
        "imageData": None,
        "imageHeight": record.height,
        "imageWidth": record.width,
    }
