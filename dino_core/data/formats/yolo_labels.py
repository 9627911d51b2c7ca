"""Where the YOLO label file of an image lies, and which folders of images have such files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from dino_core.data.formats.images import with_suffixes
from dino_core.data.formats.layout import folders_in
from dino_core.data.formats.values import number, start_of

_IMAGES = re.compile(r"(JPEG)?images?|imgs?|photos?|pictures?|frames?", re.IGNORECASE)
_LABELS, _OTHER_LABELS = ("labels",), ("annotations", "annotation", "label")


def label_path(image: Path) -> Path:
    """The label file of an image: images/ becomes labels/ in its path, else it lies beside it."""
    # Some tools (darknet, labelImg) put the label file beside the image.
    folders = [*_mirrored(image.parent, *_LABELS, *_OTHER_LABELS), image.parent]
    names = (f"{image.stem}.txt", f"{image.name}.txt", f"{image.stem}.TXT")
    files = [folder / name for name in names for folder in folders]
    # An image without a file has no objects. The path is then where the file would be.
    return next(filter(Path.is_file, files), files[0])


def image_folders_in(root: Path) -> list[Path]:
    """The folders in `root` that are named after images, such as images/ or JPEGImages/."""
    return [folder for folder in folders_in(root) if _IMAGES.fullmatch(folder.name)]


def has_labels(images: Path) -> bool:
    """Whether a folder of images has a folder of YOLO labels.

    A folder named labels/ may be empty, while one by another name must hold a YOLO label, since
    other formats use these names too.
    """
    return any(map(_may_hold_labels, _mirrored(images, *_LABELS))) or any(
        any(map(_starts_as_label, _texts_in(folder)))
        for folder in _mirrored(images, *_OTHER_LABELS)
    )


def labels_lie_beside(folder: Path) -> bool:
    """Whether an image has a text file of its name beside it whose first line is a YOLO label."""
    return any(
        _starts_as_label(file)
        and any(file.with_name(name).is_file() for name in (file.stem, *with_suffixes(file.stem)))
        for file in _texts_in(folder)
    )


def _texts_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() == ".txt")


@cache
def _mirrored(images: Path, *words: str) -> list[Path]:
    """The folders of labels that a folder of images may have, e.g. labels/ for images/."""
    parts = list(images.parts)
    last = len(parts) - 1
    # The last such folder, as Ultralytics does: in images/set1/images/a.jpg only the inner one has
    # a counterpart labels/.
    i = next((i for i in range(last, -1, -1) if _IMAGES.fullmatch(parts[i])), last)
    match = _IMAGES.search(parts[i]) if parts else None  # train_images too
    if match is None:
        return []
    names = []
    for word in words:
        # Images/ goes with Labels/, and images/ with labels/, but mixtures exist.
        cases = (word.capitalize(), word) if match[0][0].isupper() else (word, word.capitalize())
        names += [parts[i][: match.start()] + case + parts[i][match.end() :] for case in cases]
    return [Path(*parts[:i], name, *parts[i + 1 :]) for name in names]


def _may_hold_labels(folder: Path) -> bool:
    """Whether a folder of labels exists, if only its parent, and is not all of another format."""
    # labels/train may be missing where no image of the split has an object.
    if not folder.is_dir() and folder.parent.name.lower() in _LABELS:
        folder = folder.parent
    if not folder.is_dir():
        return False
    of_others = False
    for path in folder.rglob("*"):
        if path.suffix.lower() == ".txt":
            return True
        # labels/ is also a usual folder of VOC and LabelMe files.
        of_others = of_others or path.suffix.lower() in {".xml", ".json", ".csv"}
    return not of_others


def _starts_as_label(file: Path) -> bool:
    start = start_of(file, 1000)
    try:
        # A limit, since a text file that is no label may be one enormous line.
        words = (start or b"").decode("utf-8-sig").partition("\n")[0].split()
    except UnicodeDecodeError:
        return False
    is_class = bool(words) and words[0].isdecimal()
    return is_class and len(words) >= 5 and all(number(word) is not None for word in words)
