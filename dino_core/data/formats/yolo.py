"""YOLO text labels (`class cx cy w h`, fractions of the image) to and from the neutral form."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from dino_core.data.faults import FaultLog
from dino_core.data.formats.images import copy_images, unique_names
from dino_core.data.formats.labeled import lost_labels
from dino_core.data.formats.losses import lost_areas, lost_crowds, lost_flags
from dino_core.data.formats.record import LabeledBox, make_record
from dino_core.data.formats.values import MOST_LABEL_BYTES, read_text
from dino_core.data.formats.yolo_files import YoloFiles
from dino_core.data.formats.yolo_labels import label_path
from dino_core.data.formats.yolo_yaml import MOST_CLASSES
from dino_core.data.records import DatasetIndex, ImageRecord
from dino_core.detections import ClassMap
from dino_core.errors import DataError
from dino_core.files import is_inside, write_text
from dino_core.processing.image_files import upright_size

_FIELDS = "class cx cy w h"
_LARGEST_FRACTION = 2.0  # a larger coordinate was meant as pixels
_DIGITS = 9  # after the point, in written fractions: 1e-5 px of a 10,000 px image


def read_yolo(files: YoloFiles) -> DatasetIndex:
    """Read a YOLO data set.

    An image without a label file has no boxes. Outlines (polygons) and poses become their boxes.
    Boxes outside their images are clipped; lines, label files, images and splits that cannot be
    used are left out and recorded in the faults. Images are numbered from 1 in the order of their
    names or of their list.

    Raises:
        DataError: no split has images, no image has a label file, or two classes have one name.
    """
    if not files.images:
        raise next(iter(files.missing.values()))
    log = FaultLog()
    # A split that is named but not there does not keep the others from being used.
    for error in files.missing.values():
        log.add_error("missing-split", error)
    _log_outside(files, log)
    label_files = {image: label_path(image) for split in files.images.values() for image in split}
    labeled = {
        split: _read_labels(images, label_files, files, log)
        for split, images in files.images.items()
    }
    _log_unlabeled(labeled, files, log)
    classes = _classes_of(labeled, files, log)
    splits = {split: _read_images(images, log) for split, images in labeled.items()}
    for split in [split for split, records in splits.items() if not records]:
        del splits[split]
        count = len(files.images[split])
        log.add("missing-split", f"{files.source}: none of the {count} images of {split} is usable")
    _log_stray_labels(label_files.values(), log)
    return DatasetIndex(files.root, "yolo", classes, splits, log.faults(), named_splits=files.named)


def _log_outside(files: YoloFiles, log: FaultLog) -> None:
    """Record how many images of each split lie outside the folder of data.yaml."""
    home = files.source if files.source.is_dir() else files.source.parent
    for split, images in files.images.items():
        outside = [image for image in images if not is_inside(image, home)]
        if outside:
            place = f"{files.source}: {split} has {outside[0]}"
            log.add("image-outside", place, outside[:1], count=len(outside))


def names_classes(files: YoloFiles) -> bool:
    """Whether the data set names its classes."""
    return files.names is not None


@dataclass(frozen=True)
class _Label:
    """One line of a label file.

    Attributes:
        place: File and line.
        class_index: From 0.
        corners: x1, y1, x2, y2 as fractions of the image's width and height.
        shape: What the line holds; outlines and poses are reduced to their box.
    """

    place: str
    class_index: int
    corners: tuple[float, float, float, float]
    shape: Literal["box", "outline", "pose"]


@dataclass(frozen=True)
class _LabeledImage:
    """An image with its labels; None where it has no file. `lost` lines could not be read."""

    image_id: int
    path: Path
    label_file: Path
    labels: Sequence[_Label] | None
    lost: int = 0


def _read_labels(
    images: Sequence[Path], label_files: Mapping[Path, Path], files: YoloFiles, log: FaultLog
) -> list[_LabeledImage]:
    """The labels of one split.

    An image whose label file cannot be read is left out: as an image without boxes it would teach
    that nothing is on it.
    """
    read = []
    for image_id, image in enumerate(images, start=1):
        file = label_files[image]
        try:
            text = _text_of(file)
        except DataError as error:
            log.add_error("malformed-file", error, (image,))
            continue
        labels = None if text is None else _labels_in(text, file, image, files, log)
        lines = 0 if text is None else sum(bool(line.strip()) for line in text.splitlines())
        read.append(_LabeledImage(image_id, image, file, labels, lines - len(labels or ())))
    return read


def _text_of(file: Path) -> str | None:
    """The content of a label file; None where there is no file."""
    try:
        if not os.path.exists(file):
            return None
        text = read_text(file, MOST_LABEL_BYTES)
    except DataError as error:
        raise DataError(f"{error.message}, its image is left out", error.hint) from error
    if "\0" in text:  # zeros where a copy was cut short, or text in UTF-16
        raise DataError(f"{file}: holds zero bytes and is no text, its image is left out")
    return text


def _labels_in(text: str, file: Path, image: Path, files: YoloFiles, log: FaultLog) -> list[_Label]:
    """The labels of one file; each line that cannot be used becomes a fault."""
    labels = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{file} line {number}"
        try:
            label = _parse_line(line.split(), place, files.keypoints)
        except DataError as error:
            log.add_error("malformed-label", error, (image,))
            continue
        if files.names is not None and label.class_index >= len(files.names):
            known = _known_classes(len(files.names))
            found = f"class {label.class_index}, but {files.source} names {known}"
            log.add("unknown-class", f"{place}: {found}", (image,))
            continue
        if label.shape != "box":
            log.add(f"{label.shape}-label", place, (image,))
        labels.append(label)
    return labels


def _known_classes(count: int) -> str:
    return "1 class (0)" if count == 1 else f"{count} classes (0 to {count - 1})"


def _parse_line(words: Sequence[str], place: str, keypoints: int) -> _Label:
    """One label from the words of its line; DataError where it is malformed."""
    numbers = [_number(word, place) for word in words]
    is_pose = keypoints > 0 and len(numbers) == 5 + keypoints
    if is_pose:
        numbers = numbers[:5]
    is_outline = len(numbers) >= 7 and len(numbers) % 2 == 1
    if len(numbers) != 5 and not is_outline:
        found = f"{len(numbers)} number{'' if len(numbers) == 1 else 's'}"
        raise DataError(f"{place}: {found}, a YOLO box has 5 ({_FIELDS})")
    if not all(map(math.isfinite, numbers)):
        raise DataError(f"{place}: '{' '.join(words):.80}' has a number that is not finite")
    class_index = numbers[0]
    if not class_index.is_integer() or not 0 <= class_index < MOST_CLASSES:
        expected = f"expected an integer from 0 to {MOST_CLASSES - 1:,}"
        raise DataError(f"{place}: class is {words[0]:.40}, {expected}")
    if max(map(abs, numbers[1:])) > _LARGEST_FRACTION:
        raise DataError(
            f"{place}: '{' '.join(words[1:]):.80}' is not in 0 to 1",
            "YOLO coordinates are fractions of the image's width and height, not pixels",
        )
    if is_outline:
        xs, ys = numbers[1::2], numbers[2::2]
        return _Label(place, int(class_index), (min(xs), min(ys), max(xs), max(ys)), "outline")
    cx, cy, w, h = numbers[1:]
    corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    return _Label(place, int(class_index), corners, "pose" if is_pose else "box")


def _number(word: str, place: str) -> float:
    try:
        return float(word)
    except ValueError:
        expected = f"a YOLO box is {_FIELDS}"
        raise DataError(f"{place}: '{word:.40}' is not a number, {expected}") from None


def _log_unlabeled(
    labeled: Mapping[str, Sequence[_LabeledImage]], files: YoloFiles, log: FaultLog
) -> None:
    """Record the images of each split in which no image at all has a label file.

    A test split may well be without labels. Where only some images have no label file, a check of
    the data reports them.

    Raises:
        DataError: no image of any split has a label file, so the place must be wrong.
    """
    everything = [image for images in labeled.values() for image in images]
    unlabeled = [
        images
        for split, images in labeled.items()
        if split != "test" and images and all(image.labels is None for image in images)
    ]
    if unlabeled and all(i.labels is None for i in everything) and not log.has("malformed-file"):
        raise DataError(
            f"{files.source}: none of the {len(everything)} images has a label file",
            f"looked for {unlabeled[0][0].label_file} and the like",
        )
    for image in (image for images in unlabeled for image in images):
        log.add("missing-label", f"{image.path}: no {image.label_file}", (image.path,))


def _classes_of(
    labeled: Mapping[str, Sequence[_LabeledImage]], files: YoloFiles, log: FaultLog
) -> ClassMap:
    """The named classes, or else as many as the labels use, which may be none."""
    names = files.names
    if names is None:
        images = [image for split in labeled.values() for image in split]
        used = [label.class_index for image in images for label in image.labels or ()]
        names = tuple(f"class_{i}" for i in range(max(used, default=-1) + 1))
        if names:
            log.add(
                "classes-unnamed",
                f"{files.source}: they are called class_0, class_1 and so on; a data.yaml with "
                "names, or classes.txt, would name them",
            )
    used_names = list(names)
    for i in sorted({each.class_index for images in labeled.values() for image in images
                     for each in image.labels or () if not names[each.class_index]}):  # fmt: skip
        used_names[i] = f"class_{i}"
        log.add("class-unnamed", f"{files.source}: class {i} is called class_{i}")
    try:
        return ClassMap.from_names(used_names)
    except DataError as error:
        raise DataError(f"{files.source}: {error.message}", error.hint) from error


def _read_images(images: Iterable[_LabeledImage], log: FaultLog) -> tuple[ImageRecord, ...]:
    """The records of one split, without the images that are missing or unreadable."""
    records = []
    for image in images:
        path = image.path
        if image.lost and not image.labels:
            log.add("labels-lost", f"{image.label_file}: {lost_labels(image.lost)}", (path,))
        elif not path.is_file():
            log.add("missing-image", f"{path}: no such file", (path,))
        elif (size := upright_size(path)) is None:
            log.add("unreadable-image", f"{path}: cannot be opened as an image", (path,))
        else:
            boxes = [
                LabeledBox(label.place, label.corners, label.class_index)
                for label in image.labels or ()
            ]
            records.append(make_record(image.image_id, path, size, boxes, log, size))
    return tuple(records)


def _log_stray_labels(label_files: Iterable[Path], log: FaultLog) -> None:
    """Record the label files beside the expected ones that belong to no image."""
    expected = set(label_files)
    for folder in sorted({path.parent for path in expected}):
        for file in sorted(folder.glob("*.txt")):
            if "labels" in file.parts and file not in expected and file.name != "classes.txt":
                log.add("label-without-image", str(file))


def write_yolo(index: DatasetIndex, out_dir: Path) -> list[str]:
    """Write data.yaml, images/SPLIT/ and labels/SPLIT/ below `out_dir`.

    Returns:
        What the format could not hold, one sentence each.

    Raises:
        OSError: the folder cannot be written.
    """
    lost = [*index.unread, *_losses(index)]
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
    return lost


def _label_text(record: ImageRecord) -> str:
    keep = ~record.is_crowd
    boxes = record.boxes_xyxy_px[keep].astype(np.float64)
    boxes = boxes / [record.width, record.height, record.width, record.height]
    boxes = boxes.clip(0.0, 1.0)
    center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return "".join(
        f"{class_index} {' '.join(f'{v:.{_DIGITS}f}' for v in row)}\n"
        for class_index, row in zip(
            record.class_indices[keep], np.hstack([center, size]).tolist(), strict=True
        )
    )


def _losses(index: DatasetIndex) -> list[str]:
    """What YOLO labels cannot hold, one sentence each."""
    lost = lost_crowds(index, "YOLO")
    if index.classes.source_ids != tuple(range(len(index.classes))):
        ids = ", ".join(map(str, index.classes.source_ids[:10]))
        lost.append(f"the class ids ({ids:.60}) became 0 to {len(index.classes) - 1}")
    for split, members in index.splits.items():
        by_name = sorted(zip(members, unique_names(members), strict=True), key=lambda m: m[1])
        if [record.image_id for record, _ in by_name] != list(range(1, len(members) + 1)):
            lost.append(f"{split}: image ids and order are lost, YOLO images are known by name")
    return [*lost, *lost_areas(index), *lost_flags(index, "YOLO")]
