"""From labels that name their images (COCO, VOC, CSV) to records at the size of the files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from dino_core.data.faults import FaultLog
from dino_core.data.formats.images import list_images, with_suffixes
from dino_core.data.formats.record import LabeledBox, make_record
from dino_core.data.records import ImageRecord
from dino_core.errors import DataError
from dino_core.files import is_inside
from dino_core.processing.image_files import IMAGE_SUFFIXES, SIDEWAYS, image_header

_LONGEST_NAME = 4096  # of a path, on every usual system
_DEEPEST = 16  # folders of a name that may be another machine's, counted from its end
_MOST_SHOWN = 200  # characters of a name in a message
_SAME_ASPECT = 0.01  # sizes whose aspect differs by less are one image at two resolutions


@dataclass(frozen=True)
class LabeledImage:
    """One image as its labels describe it.

    Attributes:
        image_id: Unique in its split.
        names: File names it may have, the likeliest first; they may hold folders.
        place: File and line or entry, for faults.
        stated_wh: Width and height as stated; None where they are not.
        boxes: In file order.
        in_fractions: Whether the boxes are fractions of width and height instead of pixels.
        lost: How many of its labels could not be read.
    """

    image_id: int
    names: Sequence[str]
    place: str
    stated_wh: tuple[int, int] | None
    boxes: Sequence[LabeledBox]
    in_fractions: bool = False
    lost: int = 0


def read_images(
    images: Iterable[LabeledImage], folders: list[Path], source: Path, log: FaultLog
) -> tuple[ImageRecord, ...]:
    """The records of one split.

    Images that are missing, unreadable or of another shape than stated are left out. Where none is
    in the usual folders, they are looked for by name in all others; where none is found there
    either, the split is missing.

    Args:
        images: What the labels say.
        folders: Where image files may lie, most specific first; one holds all others.
        source: The label file or folder, for faults.
        log: Records images that are missing or do not fit.
    """
    images = list(images)
    paths = _unambiguous(images, _find_images(images, folders), log)
    if images and not any(paths):
        looked = ", ".join(map(str, folders))
        log.add(
            "missing-split",
            f"{source}: none of its {len(images)} images was found, e.g. "
            f"{images[0].names[0]:.{_MOST_SHOWN}} (looked in {looked})",
        )
        return ()
    records: list[ImageRecord] = []
    root = _common(folders)
    for image, path in zip(images, paths, strict=True):
        if path is None:
            log.add("missing-image", f"{image.place}: {image.names[0]:.{_MOST_SHOWN}}")
            continue
        if image.lost and not image.boxes:
            log.add("labels-lost", f"{image.place}: {lost_labels(image.lost)}", (path,))
            continue
        if root is not None and not is_inside(path, root):
            log.add("image-outside", f"{image.place}: {path}", (path,))
        record = _read_image(image, path, log)
        if record is not None:
            records.append(record)
    return tuple(records)


def lost_labels(count: int) -> str:
    """What is lost of an image, for the place of its fault."""
    return "its only label" if count == 1 else f"all of its {count} labels"


def _common(folders: Sequence[Path]) -> Path | None:
    """The folder that holds all others."""
    return min(folders, key=lambda folder: len(folder.parts), default=None)


def _unambiguous(
    images: Sequence[LabeledImage], paths: Sequence[Path | None], log: FaultLog
) -> list[Path | None]:
    """The same paths, without files that several names lead to of which they have only the end.

    Where a/1.jpg and b/1.jpg are listed and only 1.jpg is there, it is one of them or neither.
    """
    names: dict[Path, set[str]] = {}
    for image, path in zip(images, paths, strict=True):
        if path is not None:
            names.setdefault(path, set()).add(image.names[0])
    kept: list[Path | None] = []
    for image, path in zip(images, paths, strict=True):
        others = names[path] - {image.names[0]} if path is not None else set()
        parts = PurePosixPath(image.names[0].replace("\\", "/")).parts
        if path is not None and others and path.parts[-len(parts) :] != parts:
            other = min(others)
            log.add("ambiguous-image", f"{image.place}: {path} may be {image.names[0]} or {other}")
            path = None
        kept.append(path)
    return kept


def _find_images(images: Sequence[LabeledImage], folders: Sequence[Path]) -> list[Path | None]:
    """The file of each image, None for those that are not there."""
    # A copy, because a successful search changes the order.
    usual = list(folders)
    paths = [_find_image(image.names, usual) for image in images]
    # Only for images that are missing under their own names, since each spelling costs many
    # look-ups.
    others = [
        [] if path else _other_names(image) for path, image in zip(paths, images, strict=True)
    ]
    # Files of annotation tools state URLs, Windows paths, or the suffix of the original photo.
    paths = [path or _find_image(names, usual) for path, names in zip(paths, others, strict=True)]
    root = _common(folders)
    if any(paths) or root is None:
        return paths
    # Nothing is in the usual folders, so the layout is one that is not known here. Every image file
    # of the data set is listed once, and is found by its bare name.
    everything: dict[str, list[Path]] = {}
    for path in list_images(root):
        everything.setdefault(path.name, []).append(path)
    bare = ([PurePosixPath(name).name for name in names] for names in others)
    found = [next((everything[n] for n in names if n in everything), []) for names in bare]
    # A name that occurs in several folders could be any of these images. None is better than a
    # wrong one.
    return [several[0] if len(several) == 1 else None for several in found]


def _other_names(image: LabeledImage) -> list[str]:
    """What the names of an image that is not there may stand for: no URL, another suffix."""
    spellings = []
    for name in image.names:
        path = PurePosixPath(unquote(name.partition("?")[0]).replace("\\", "/").strip())
        stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
        spellings += [
            str(path.with_name(each)) for each in (path.name, *with_suffixes(stem)) if stem
        ]
    return spellings


def _find_image(names: Sequence[str], folders: list[Path]) -> Path | None:
    return next(filter(None, (_find_named(name, folders) for name in names)), None)


def _find_named(name: str, folders: list[Path]) -> Path | None:
    """The image file of that name, or without its first folders, which may be another machine's.

    The folder that had it moves to the front of the list.
    """
    if len(name) > _LONGEST_NAME:
        return None
    # With the full path first, then without its first folder, and so on: an absolute path of the
    # labeler's machine ends in the part that exists here.
    parts = PurePosixPath(name.replace("\\", "/")).parts
    for start in range(len(parts)):
        if 0 < start < len(parts) - _DEEPEST:
            continue
        for i, folder in enumerate(folders):
            path = folder.joinpath(*parts[start:])
            if os.path.isfile(path):  # False, not an error, for names that no file can have
                if i:
                    # The next images most likely lie there too, which spares a look-up in each
                    # other folder.
                    folders.insert(0, folders.pop(i))
                return path
    return None


def _read_image(image: LabeledImage, path: Path, log: FaultLog) -> ImageRecord | None:
    """The record of one image at its file's own size; None, with a fault, if it cannot be used."""
    # The size in the file is used, not the stated one, because boxes must fit the pixels that are
    # read. Many annotation files state the size before a resize or without EXIF rotation.
    try:
        width, height, orientation = image_header(path)
    except DataError as error:
        log.add_error("unreadable-image", error, (path,))
        return None
    size = (width, height)
    stated, boxes = image.stated_wh or size, image.boxes
    sizes = f"{stated[0]}x{stated[1]} stated, {path} is {width}x{height} upright"
    if not _same_aspect(stated, size) and orientation in SIDEWAYS:
        turned = stated[::-1]
        if _same_aspect(turned, size):
            log.add("boxes-turned", f"{image.place}: {sizes}", (path,))
            frame = (1, 1) if image.in_fractions else stated
            boxes = [replace(box, xyxy=turned_box(box.xyxy, frame, orientation)) for box in boxes]
            stated = turned
    # Another aspect means another image or one that was cropped, to which no scaling fits the
    # boxes.
    if not _same_aspect(stated, size):
        log.add("wrong-shape", f"{image.place}: {sizes}", (path,))
        return None
    if stated != size:
        log.add("other-size", f"{image.place}: {sizes}", (path,))
    # Fractions of width and height are pixels of an image of size 1 x 1.
    scale = size if image.in_fractions else (width / stated[0], height / stated[1])
    return make_record(image.image_id, path, size, boxes, log, scale)


def _same_aspect(stated_wh: tuple[int, int], size_wh: tuple[int, int]) -> bool:
    scale_x, scale_y = size_wh[0] / stated_wh[0], size_wh[1] / stated_wh[1]
    return abs(scale_x / scale_y - 1) <= _SAME_ASPECT


def turned_box(
    xyxy: tuple[float, float, float, float], stored_wh: tuple[float, float], orientation: int
) -> tuple[float, float, float, float]:
    """A box in the frame of the stored pixels, in the frame of the upright image.

    Args:
        xyxy: Corners in the stored frame.
        stored_wh: Its width and height, in the same unit.
        orientation: An EXIF orientation of `SIDEWAYS`.
    """
    (x1, y1, x2, y2), (width, height) = xyxy, stored_wh
    if orientation in (6, 7):  # the lower edge becomes the left one
        y1, y2 = height - y2, height - y1
    if orientation in (7, 8):  # the right edge becomes the upper one
        x1, x2 = width - x2, width - x1
    return y1, x1, y2, x2
