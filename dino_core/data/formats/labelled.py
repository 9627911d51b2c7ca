"""From labels that name their images (COCO, VOC, CSV) to records: found, measured, scaled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from dino_core.data.formats.images import list_images, with_suffixes
from dino_core.data.formats.repairs import Repairs, make_record
from dino_core.data.records import ImageRecord
from dino_core.errors import DataError
from dino_core.processing.image_files import IMAGE_SUFFIXES, upright_size

_SAME_ASPECT = 0.01  # sizes whose aspect differs by less are one image at two resolutions


@dataclass(frozen=True)
class LabelledBox:
    """One box as its file tells it.

    Attributes:
        place: File and line or entry, for errors and notes.
        xyxy: Corners in pixels of the stated size, or as `LabelledImage.in_fractions` says.
        class_index: Index into the data set's ClassMap.
        is_crowd: Whether it is a COCO crowd.
        area: As stated; None for width times height.
        flags: Marks such as VOC's "difficult".
    """

    place: str
    xyxy: tuple[float, float, float, float]
    class_index: int
    is_crowd: bool = False
    area: float | None = None
    flags: Set[str] = frozenset()


@dataclass(frozen=True)
class LabelledImage:
    """One image as its file tells it.

    Attributes:
        image_id: Unique in its split.
        names: File names it may have, the likeliest first; they may hold folders.
        place: File and line or entry, for errors and notes.
        stated_wh: Width and height as stated; None where they are not.
        boxes: In file order.
        in_fractions: Whether the boxes are fractions of width and height instead of pixels.
    """

    image_id: int
    names: Sequence[str]
    place: str
    stated_wh: tuple[int, int] | None
    boxes: Sequence[LabelledBox]
    in_fractions: bool = False


def read_images(
    images: Iterable[LabelledImage], folders: list[Path], source: Path, repairs: Repairs
) -> tuple[ImageRecord, ...]:
    """The records of one split.

    Images that are missing, unreadable or of another shape than stated are left out, with a note.
    Where none is in the usual folders, they are looked for by name in all others.

    Args:
        images: What the labels tell.
        folders: Where image files may lie, most specific first; one holds all others.
        source: The label file or folder, for errors.
        repairs: Where repairs are noted.

    Raises:
        DataError: none of the images is there.
    """
    images = list(images)
    paths = _find_images(images, folders)
    if images and not any(paths):
        looked = ", ".join(map(str, folders))
        raise DataError(
            f"{source}: none of its {len(images)} images was found, e.g. {images[0].names[0]}",
            f"looked in {looked}",
        )
    records: list[ImageRecord] = []
    for image, path in zip(images, paths, strict=True):
        if path is None:
            repairs.add(
                "image file is missing and was left out",
                "image files are missing and were left out",
                f"{image.place}: {image.names[0]}",
            )
            continue
        record = _read_image(image, path, repairs)
        if record is not None:
            records.append(record)
    return tuple(records)


def _find_images(images: Sequence[LabelledImage], folders: Sequence[Path]) -> list[Path | None]:
    """The file of each image, None for those that are not there."""
    usual = list(folders)
    paths = [_find_image(image.names, usual) for image in images]
    spelt = [[] if path else _spellings(image) for path, image in zip(paths, images, strict=True)]
    paths = [path or _find_image(names, usual) for path, names in zip(paths, spelt, strict=True)]
    if any(paths) or not folders:
        return paths
    everything: dict[str, list[Path]] = {}
    for path in list_images(min(folders, key=lambda folder: len(folder.parts))):
        everything.setdefault(path.name, []).append(path)
    bare = ([PurePosixPath(name).name for name in names] for names in spelt)
    found = [next((everything[n] for n in names if n in everything), []) for names in bare]
    return [several[0] if len(several) == 1 else None for several in found]


def _spellings(image: LabelledImage) -> list[str]:
    """What the names of an image that is not there may stand for: no URL, another suffix."""
    spelt = []
    for name in image.names:
        path = PurePosixPath(unquote(name.partition("?")[0]).replace("\\", "/").strip())
        stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
        spelt += [str(path.with_name(each)) for each in (path.name, *with_suffixes(stem)) if stem]
    return spelt


def _find_image(names: Sequence[str], folders: list[Path]) -> Path | None:
    return next(filter(None, (_find_named(name, folders) for name in names)), None)


def _find_named(name: str, folders: list[Path]) -> Path | None:
    """The image file of that name, or without its first folders, which may be another machine's.

    The folder that had it moves to the front of the list.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    for start in range(len(parts)):
        for i, folder in enumerate(folders):
            path = folder.joinpath(*parts[start:])
            if path.is_file():
                if i:
                    folders.insert(0, folders.pop(i))
                return path
    return None


def _read_image(image: LabelledImage, path: Path, repairs: Repairs) -> ImageRecord | None:
    """The record of one image at its file's own size; None, with a note, if it cannot be used."""
    size = upright_size(path)
    if size is None:
        repairs.add(
            "file is not a readable image and was left out",
            "files are not readable images and were left out",
            str(path),
        )
        return None
    stated = image.stated_wh or size
    scale_x, scale_y = size[0] / stated[0], size[1] / stated[1]
    sizes = f"{stated[0]}x{stated[1]} stated, {path} is {size[0]}x{size[1]} upright"
    if abs(scale_x / scale_y - 1) > _SAME_ASPECT:
        repairs.add(
            "image does not have the stated shape and was left out",
            "images do not have the stated shape and were left out",
            f"{image.place}: {sizes}",
        )
        return None
    if stated != size:
        repairs.add(
            "image has another size than stated; its boxes were scaled",
            "images have another size than stated; their boxes were scaled",
            f"{image.place}: {sizes}",
        )
    if image.in_fractions:
        scale_x, scale_y = size
    scale_area = scale_x * scale_y
    return make_record(
        image.image_id,
        path,
        size,
        [
            (x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y)
            for x1, y1, x2, y2 in (box.xyxy for box in image.boxes)
        ],
        [box.class_index for box in image.boxes],
        [box.place for box in image.boxes],
        repairs,
        is_crowd=[box.is_crowd for box in image.boxes],
        areas=[None if box.area is None else box.area * scale_area for box in image.boxes],
        flags=[box.flags for box in image.boxes],
    )
