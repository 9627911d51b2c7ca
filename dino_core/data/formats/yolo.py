"""YOLO text labels (`class cx cy w h`, fractions of the image) to and from the neutral form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from dino_core.data.formats.images import copy_images, unique_names, writing_failed
from dino_core.data.formats.losses import lost_areas, lost_crowds, lost_flags
from dino_core.data.formats.repairs import Repairs, make_record
from dino_core.data.formats.yolo_files import YoloFiles, find_yolo, label_path
from dino_core.data.records import DatasetIndex, ImageRecord
from dino_core.detections import ClassMap
from dino_core.errors import DataError
from dino_core.files import write_text
from dino_core.processing.image_files import upright_size

_FIELDS = "class cx cy w h"
_LARGEST_FRACTION = 2.0  # a larger coordinate was meant as pixels
_DIGITS = 9  # after the point, in written fractions: 1e-5 px of a 10,000 px image


def read_yolo(path: Path) -> DatasetIndex:
    """Read a YOLO data set: a folder, with data.yaml or without, or a data.yaml file.

    An image without a label file has no boxes. Outlines (polygons) become their boxes. Boxes
    outside their images are clipped, boxes without area and unreadable images are left out; the
    index's warnings tell. Images are numbered from 1 in the order of their names.

    Raises:
        DataError: a file is missing or malformed, naming the line.
    """
    files = find_yolo(path)
    for split, images in files.images.items():
        if not images:
            raise DataError(f"{files.source}: the {split} split has no images")
    repairs = Repairs()
    count = None if files.names is None else len(files.names)
    labels = {
        split: [_read_labels(label_path(image), count, files, repairs) for image in images]
        for split, images in files.images.items()
    }
    classes = _classes_of(files, labels, repairs)
    splits = {split: _read_split(split, files, labels[split], repairs) for split in files.images}
    _note_stray_labels(files, repairs)
    return DatasetIndex(files.root, "yolo", classes, splits, (*files.missing, *repairs.sentences()))


@dataclass(frozen=True)
class _Label:
    """One line: class index and corners as fractions of the image."""

    place: str
    class_index: int
    corners: tuple[float, float, float, float]


def _read_labels(
    file: Path, classes: int | None, files: YoloFiles, repairs: Repairs
) -> list[_Label] | None:
    """The lines of a label file; None where there is no file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error})") from error
    labels = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        label = _read_line(line.split(), f"{file} line {number}", files.keypoints, repairs)
        if classes is not None and label.class_index >= classes:
            raise DataError(
                f"{label.place}: class {label.class_index}, but {files.source} names {classes} "
                f"{'class (0)' if classes == 1 else f'classes (0 to {classes - 1})'}",
                "classes count from 0",
            )
        labels.append(label)
    return labels


def _read_line(words: Sequence[str], place: str, keypoints: int, repairs: Repairs) -> _Label:
    numbers = []
    for word in words:
        try:
            numbers.append(float(word))
        except ValueError:
            raise DataError(
                f"{place}: '{word:.40}' is not a number, a YOLO box is {_FIELDS}"
            ) from None
    if keypoints and len(numbers) == 5 + keypoints:
        repairs.add("pose became its box", "poses became their boxes", place)
        numbers = numbers[:5]
    is_outline = len(numbers) >= 7 and len(numbers) % 2 == 1
    if len(numbers) != 5 and not is_outline:
        found = f"{len(numbers)} number{'' if len(numbers) == 1 else 's'}"
        raise DataError(f"{place}: {found}, a YOLO box has 5 ({_FIELDS})")
    if not all(map(math.isfinite, numbers)):
        raise DataError(f"{place}: '{' '.join(words):.80}' has a number that is not finite")
    class_index = numbers[0]
    if class_index < 0 or not class_index.is_integer():
        raise DataError(f"{place}: class is {words[0]}, expected an integer from 0")
    if max(map(abs, numbers[1:])) > _LARGEST_FRACTION:
        raise DataError(
            f"{place}: '{' '.join(words[1:]):.80}' is not in 0 to 1",
            "YOLO coordinates are fractions of the image's width and height, not pixels",
        )
    if is_outline:
        repairs.add("outline became its box", "outlines became their boxes", place)
        xs, ys = numbers[1::2], numbers[2::2]
        corners = (min(xs), min(ys), max(xs), max(ys))
    else:
        cx, cy, w, h = numbers[1:]
        corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    return _Label(place, int(class_index), corners)


def _classes_of(
    files: YoloFiles, labels: dict[str, list[list[_Label] | None]], repairs: Repairs
) -> ClassMap:
    names = files.names
    if names is None:
        used = [label.class_index for split in labels.values() for lines in split if lines
                for label in lines]  # fmt: skip
        names = tuple(f"class_{i}" for i in range(max(used, default=-1) + 1))
        repairs.add(
            "data set names no classes; they are called class_0, class_1 and so on",
            "data sets name no classes; they are called class_0, class_1 and so on",
            f"{files.source}: a data.yaml with names, or classes.txt, would name them",
        )
    if not names:
        raise DataError(f"{files.source}: there are no classes", "name them in data.yaml")
    try:
        return ClassMap.from_names(names)
    except DataError as error:
        raise DataError(f"{files.source}: {error.message}", error.hint) from error


def _read_split(
    split: str, files: YoloFiles, labels: list[list[_Label] | None], repairs: Repairs
) -> tuple[ImageRecord, ...]:
    images = files.images[split]
    if all(lines is None for lines in labels) and split != "test":
        raise DataError(
            f"{files.source}: none of the {len(images)} images of {split} has a label file",
            f"looked for {label_path(images[0])} and the like",
        )
    records = []
    for image_id, (image, lines) in enumerate(zip(images, labels, strict=True), start=1):
        size = upright_size(image) if image.is_file() else None
        if size is None:
            _note_unusable(image, repairs)
            continue
        width, height = size
        lines = lines or []
        corners = np.array([label.corners for label in lines]).reshape(-1, 4)
        records.append(
            make_record(
                image_id,
                image,
                size,
                (corners * [width, height, width, height]).tolist(),
                [label.class_index for label in lines],
                [label.place for label in lines],
                repairs,
            )
        )
    if not records:
        raise DataError(f"{files.source}: no image of {split} can be read, e.g. {images[0]}")
    return tuple(records)


def _note_unusable(image: Path, repairs: Repairs) -> None:
    if image.is_file():
        one, many = "file is not a readable image", "files are not readable images"
        repairs.add(f"{one} and was left out", f"{many} and were left out", str(image))
    else:
        one, many = "image file is missing", "image files are missing"
        repairs.add(f"{one} and was left out", f"{many} and were left out", str(image))


def _note_stray_labels(files: YoloFiles, repairs: Repairs) -> None:
    expected = {label_path(image) for images in files.images.values() for image in images}
    for folder in sorted({path.parent for path in expected}):
        for file in sorted(folder.glob("*.txt")):
            if "labels" in file.parts and file not in expected and file.name != "classes.txt":
                repairs.add(
                    "label file belongs to no image of the data set",
                    "label files belong to no image of the data set",
                    str(file),
                )


def write_yolo(index: DatasetIndex, out_dir: Path) -> list[str]:
    """Write data.yaml, images/SPLIT/ and labels/SPLIT/ below `out_dir`.

    Returns: what could not be kept, one sentence each.
    Raises: DataError if the folder cannot be written.
    """
    lost = [*index.unread, *_not_kept(index)]
    try:
        for split, records in index.splits.items():
            names = unique_names(records)
            copy_images(records, names, out_dir / "images" / split, lost)
            for record, name in zip(records, names, strict=True):
                label_file = (out_dir / "labels" / split / name).with_suffix(".txt")
                write_text(label_file, _label_text(record))
        table = {split: f"images/{split}" for split in index.splits}
        table = {"path": ".", "train": table.pop("train", ""), **table}
        text = yaml.safe_dump(
            {**table, "nc": len(index.classes), "names": list(index.classes.names)},
            sort_keys=False,
            allow_unicode=True,
            width=1000,
        )
        write_text(out_dir / "data.yaml", text)
    except OSError as error:
        raise writing_failed(out_dir, error) from error
    return lost


def _label_text(record: ImageRecord) -> str:
    keep = ~record.is_crowd
    boxes = record.boxes_xyxy_px[keep].astype(np.float64)
    boxes = boxes / [record.width, record.height, record.width, record.height]
    boxes = boxes.clip(0.0, 1.0)
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return "".join(
        f"{class_index} {' '.join(f'{v:.{_DIGITS}f}' for v in row)}\n"
        for class_index, row in zip(
            record.class_indices[keep], np.hstack([centre, size]).tolist(), strict=True
        )
    )


def _not_kept(index: DatasetIndex) -> list[str]:
    """What YOLO text has no place for."""
    lost = lost_crowds(index, "YOLO")
    if index.classes.source_ids != tuple(range(len(index.classes))):
        ids = ", ".join(map(str, index.classes.source_ids[:10]))
        lost.append(f"the class ids ({ids:.60}) became 0 to {len(index.classes) - 1}")
    for split, members in index.splits.items():
        by_name = sorted(zip(members, unique_names(members), strict=True), key=lambda m: m[1])
        if [record.image_id for record, _ in by_name] != list(range(1, len(members) + 1)):
            lost.append(f"{split}: image ids and order are lost, YOLO images are known by name")
    return [*lost, *lost_areas(index), *lost_flags(index, "YOLO")]
