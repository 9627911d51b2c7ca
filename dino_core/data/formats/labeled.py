"""From labels that name their images (COCO, VOC, CSV) to records at the size of the files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from dino_core.data.faults import FaultLog
from dino_core.data.formats.images import list_images, with_suffixes
from dino_core.data.formats.record import LabeledBox, make_record
from dino_core.data.records import ImageRecord
from dino_core.processing.image_files import IMAGE_SUFFIXES, upright_size

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
    paths = _find_images(images, folders)
    if images and not any(paths):
        looked = ", ".join(map(str, folders))
        log.add(
            "missing-split",
            f"{source}: none of its {len(images)} images was found, e.g. {images[0].names[0]} "
            f"(looked in {looked})",
        )
        return ()
    records: list[ImageRecord] = []
    for image, path in zip(images, paths, strict=True):
        if path is None:
            log.add("missing-image", f"{image.place}: {image.names[0]}")
            continue
        if image.lost and not image.boxes:
            log.add("labels-lost", f"{image.place}: {lost_labels(image.lost)}", (path,))
            continue
        record = _read_image(image, path, log)
        if record is not None:
            records.append(record)
    return tuple(records)


def lost_labels(count: int) -> str:
    """What is lost of an image, for the place of its fault."""
    return "its only label" if count == 1 else f"all of its {count} labels"


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
    if any(paths) or not folders:
        return paths
    # Nothing is in the usual folders, so the layout is one that is not known here. Every image file
    # of the data set is listed once, and is found by its bare name.
    everything: dict[str, list[Path]] = {}
    for path in list_images(min(folders, key=lambda folder: len(folder.parts))):
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
    # With the full path first, then without its first folder, and so on: an absolute path of the
    # labeler's machine ends in the part that exists here.
    parts = PurePosixPath(name.replace("\\", "/")).parts
    for start in range(len(parts)):
        for i, folder in enumerate(folders):
            path = folder.joinpath(*parts[start:])
            if path.is_file():
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
    size = upright_size(path)
    if size is None:
        log.add("unreadable-image", f"{path}: left out by the reader", (path,))
        return None
    stated = image.stated_wh or size
    scale_x, scale_y = size[0] / stated[0], size[1] / stated[1]
    sizes = f"{stated[0]}x{stated[1]} stated, {path} is {size[0]}x{size[1]} upright"
    # Another aspect means another image or one that was cropped, to which no scaling fits the
    # boxes.
    if abs(scale_x / scale_y - 1) > _SAME_ASPECT:
        log.add("wrong-shape", f"{image.place}: {sizes}", (path,))
        return None
    if stated != size:
        log.add("other-size", f"{image.place}: {sizes}", (path,))
    # Fractions of width and height are pixels of an image of size 1 x 1.
    scale = size if image.in_fractions else (scale_x, scale_y)
    return make_record(image.image_id, path, size, image.boxes, log, scale)
