"""Where a YOLO data set keeps its images, labels and class names: data.yaml, or folders alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from dino_core.data.formats.images import list_images, with_suffixes
from dino_core.data.formats.layout import SPLIT_NAMES, folders_in, in_splits, split_lists
from dino_core.errors import DataError
from dino_core.processing.image_files import IMAGE_SUFFIXES

YOLO_LAYOUT = (
    "data.yaml, or images/{train,val}/ with labels/{train,val}/, or images and labels in one "
    "folder, or in one for each split"
)
_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_YAML_SUFFIXES = (".yaml", ".yml")
_CLASS_FILES = (
    "classes.txt", "obj.names", "labels/classes.txt", "train/classes.txt", "train/_darknet.labels",
)  # fmt: skip
_IMAGES = re.compile(r"(JPEG)?images?|imgs?|photos?|pictures?|frames?", re.IGNORECASE)
_LABELS, _OTHER_LABELS = ("labels",), ("annotations", "annotation", "label")


@dataclass(frozen=True)
class YoloFiles:
    """What there is to read.

    Attributes:
        root: The data set's folder.
        source: data.yaml, or the folder.
        names: Class names; None where nothing tells them.
        images: Split name to its image files.
        missing: What data.yaml names and is not there, one sentence each.
        keypoints: How many numbers follow each box, of a set for poses.
    """

    root: Path
    source: Path
    names: tuple[str, ...] | None
    images: Mapping[str, list[Path]]
    missing: tuple[str, ...] = ()
    keypoints: int = 0


def is_yolo(path: Path) -> bool:
    """Whether `path` is a YOLO data set: a yaml file, or a folder with one or with labels."""
    if path.is_file():
        return path.suffix.lower() in _YAML_SUFFIXES
    return _find_yaml(path) is not None or bool(_bare_folders(path))


def find_yolo(path: Path) -> YoloFiles:
    """The files of a YOLO data set.

    Raises:
        DataError: it is none, or data.yaml is malformed or names a folder of training images that
            is not there.
    """
    file = path if path.is_file() else _find_yaml(path)
    if file is not None:
        return _from_yaml(file)
    folders = _bare_folders(path)
    if not folders:
        raise DataError(f"{path}: no YOLO data set found", f"expected {YOLO_LAYOUT}")
    images = {split: list_images(folder) for split, folder in folders.items()}
    listed = _bare_lists(path, images["train"]) if list(folders) == ["train"] else {}
    return YoloFiles(path, path, _names_beside(path), listed or images)


def label_path(image: Path) -> Path:
    """The label file of an image: images/ becomes labels/ in its path, else it lies beside it."""
    name = f"{image.stem}.txt"
    beside = image.with_name(name)
    mirrored = [folder / name for folder in _mirrored(image.parent, *_LABELS, *_OTHER_LABELS)]
    there = (file for file in (*mirrored, beside) if file.is_file())
    return next(there, mirrored[0] if mirrored else beside)


@cache
def _mirrored(images: Path, *words: str) -> list[Path]:
    """The folders of labels that a folder of images may have, e.g. labels/ for images/."""
    parts = list(images.parts)
    last = len(parts) - 1
    i = next((i for i in range(last, -1, -1) if _IMAGES.fullmatch(parts[i])), last)
    match = _IMAGES.search(parts[i]) if parts else None  # train_images too
    if match is None:
        return []
    names = []
    for word in words:
        cases = (word.capitalize(), word) if match[0][0].isupper() else (word, word.capitalize())
        names += [parts[i][: match.start()] + case + parts[i][match.end() :] for case in cases]
    return [Path(*parts[:i], name, *parts[i + 1 :]) for name in names]


def _find_yaml(folder: Path) -> Path | None:
    for name in _YAML_NAMES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(f for suffix in _YAML_SUFFIXES for f in folder.glob(f"*{suffix}"))
    return next(
        (f for f in others if "train" in (table := _peek(f)) and table.keys() & _NAMING), None
    )


_NAMING = {"names", "nc"}


def _peek(file: Path) -> dict[str, Any]:
    """The table in a yaml file that may be about anything; empty if there is none."""
    try:
        return _load_yaml(file)
    except DataError:
        return {}


def _load_yaml(file: Path) -> dict[str, Any]:
    """The table in a yaml file, every value as text: a class named `no` or `1` stays a name."""
    try:
        table = yaml.load(file.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(table, dict):
        raise DataError(f"{file}: expected keys like train, val and names, found {table!r:.60}")
    return table


def _from_yaml(file: Path) -> YoloFiles:
    table = _load_yaml(file)
    names = _names_of(table, file)
    root = _root_of(table, file)
    images: dict[str, list[Path]] = {}
    missing: list[str] = []
    for split, keys in SPLIT_NAMES.items():
        for key in keys:
            places = table.get(key)
            if places and split not in images:
                places = [places] if isinstance(places, str) else places
                if not isinstance(places, list) or not all(isinstance(p, str) for p in places):
                    raise DataError(f"{file}: '{key}' is {places!r:.60}, expected a folder")
                try:
                    images[split] = [
                        image for place in places for image in _images_at(place, root, file, key)
                    ]
                except _NotThere as error:
                    if split == "train":
                        raise
                    missing.append(f"{error.message}: no {split} split was read")
    if not images:
        raise DataError(
            f"{file}: neither 'train' nor 'val' is given, found {', '.join(table) or 'nothing'}",
            "e.g. train: images/train",
        )
    names = names or _names_beside(root)
    return YoloFiles(root, file, names, images, tuple(missing), _keypoint_numbers(table, file))


class _NotThere(DataError):
    """What data.yaml names is not there."""


def _root_of(table: Mapping[str, Any], file: Path) -> Path:
    """The folder that `path` tells; the file's own where it leads nowhere on this machine."""
    stated = table.get("path")
    folder = file.parent / stated if isinstance(stated, str) and stated else file.parent
    return folder if folder.is_dir() else file.parent


def _images_at(place: str, root: Path, file: Path, key: str) -> list[Path]:
    """The images of one entry: a folder, a .txt list or one image."""
    candidates = list(_resolved(place, (root, file.parent)))
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        raise _NotThere(
            f"{file}: '{key}' is {place}, which is not there",
            f"looked for {', '.join(map(str, candidates[:4]))}",
        )
    if found.is_dir():
        inner = found / "images"
        return list_images(inner if inner.is_dir() and not _has_images(found) else found)
    if found.suffix.lower() != ".txt":
        raise DataError(f"{file}: '{key}' is {place}, expected a folder or a .txt list of images")
    return _images_listed(found, root, {})


def _has_images(folder: Path) -> bool:
    return any(path.parent == folder for path in list_images(folder))


def _resolved(place: str, folders: Sequence[Path], is_list: bool = False) -> Iterator[Path]:
    """Where a path may lead: as it is, else without its first parts.

    Roboflow writes ../train/images for train/images, whole paths are those of another machine, and
    lists of images (`is_list`) were often made one or two folders higher.
    """
    place = place.strip().replace("\\", "/")
    parts = PurePosixPath(place).parts
    is_whole = place.startswith("/") or place[1:2] == ":"
    skipped = next((i for i, part in enumerate(parts) if part != ".."), 0)
    tails = [PurePosixPath(*parts[i:]) for i in range(1, len(parts))]
    tails = tails if is_whole or is_list else []
    places = (PurePosixPath(place), PurePosixPath(*parts[skipped:]), *tails)
    yield from dict.fromkeys(folder / p for p in places for folder in folders)


def _images_listed(file: Path, root: Path, by_stem: Mapping[str, Path]) -> list[Path]:
    """The images of a .txt list, one path a line, relative to the list or the data set.

    Pascal VOC's lists have names without suffix: `by_stem` tells those.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    images = []
    for line in filter(None, map(str.strip, lines)):
        folders = (root, file.parent)
        places = _resolved(line, folders, is_list=True)
        found = next((path for path in places if path.is_file()), None)
        images.append(found or by_stem.get(line) or next(_resolved(line, folders)))
    return images


def _keypoint_numbers(table: Mapping[str, Any], file: Path) -> int:
    """How many numbers of a line are keypoints, by `kpt_shape`: their count and 2 or 3 of each."""
    shape = table.get("kpt_shape")
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(str(n).isdigit() for n in shape):
        raise DataError(f"{file}: kpt_shape is {shape!r:.40}, expected e.g. [17, 3]")
    return int(shape[0]) * int(shape[1])


def _names_of(table: Mapping[str, Any], file: Path) -> tuple[str, ...] | None:
    """Class names by `names`, a list or a table of indices, checked against `nc`."""
    names, count = table.get("names"), table.get("nc")
    if count is not None and not (isinstance(count, str) and count.isdigit()):
        raise DataError(f"{file}: nc is {count!r:.40}, expected the number of classes")
    if isinstance(names, dict):
        if sorted(names) != sorted(map(str, range(len(names)))):
            keys = ", ".join(map(str, names))
            raise DataError(
                f"{file}: names has the keys {keys:.80}, expected 0 to {len(names) - 1}"
            )
        names = [names[str(i)] for i in range(len(names))]
    if names is None or names == "":
        return None if count is None else _numbered(int(count))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: names is {names!r:.60}, expected a list of class names")
    if count is not None and int(count) != len(names):
        raise DataError(f"{file}: nc is {count}, but names has {len(names)} classes")
    return tuple(name.strip() for name in names)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class_{i}" for i in range(count))


def _names_beside(root: Path) -> tuple[str, ...] | None:
    for name in _CLASS_FILES:
        file = root / name
        if file.is_file():
            try:
                lines = file.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{file}: cannot be read ({error})") from error
            return tuple(filter(None, map(str.strip, lines)))
    return None


def _bare_folders(root: Path) -> dict[str, Path]:
    """Split name to image folder where no yaml tells; empty if this is no such layout."""
    found: dict[str, Path] = {}
    split_folders = in_splits(root)
    together = _image_folders(root)
    places = [each for images in together for each in in_splits(images)]
    places += [
        (split, images) for split, folder in split_folders for images in _image_folders(folder)
    ]
    for split, images in (*places, *split_folders):
        if split not in found and _has_labels(images):
            found[split] = images
    for images in together:
        if not found and _has_labels(images):
            found["train"] = images
    if not found:  # as Darknet and labelImg leave them: each label beside its image
        for split, folder in split_folders:
            if split not in found and _labels_lie_beside(folder):
                found[split] = folder
    if not found and _labels_lie_beside(root):
        found["train"] = root
    return found


def _image_folders(root: Path) -> list[Path]:
    return [folder for folder in folders_in(root) if _IMAGES.fullmatch(folder.name)]


def _has_labels(images: Path) -> bool:
    """Whether a folder of images has one of labels, maybe empty, but not of other forms."""
    return any(map(_may_hold_labels, _mirrored(images, *_LABELS))) or any(
        any(map(_starts_as_label, folder.rglob("*.txt")))
        for folder in _mirrored(images, *_OTHER_LABELS)
    )


def _may_hold_labels(folder: Path) -> bool:
    """Whether it is there, or its parent is, and its labels are not all of another form."""
    if not folder.is_dir() and folder.parent.name.lower() in _LABELS:
        folder = folder.parent
    if not folder.is_dir():
        return False
    of_others = False
    for path in folder.rglob("*"):
        if path.suffix.lower() == ".txt":
            return True
        of_others = of_others or path.suffix.lower() in {".xml", ".json", ".csv"}
    return not of_others


def _labels_lie_beside(folder: Path) -> bool:
    """Whether an image has a text file of its name beside it whose first line is a YOLO label."""
    return any(
        _starts_as_label(file)
        and any(file.with_name(name).is_file() for name in with_suffixes(file.stem))
        for file in folder.rglob("*.txt")
    )


def _starts_as_label(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8-sig") as stream:
            words = stream.readline(1000).split()
    except (OSError, UnicodeDecodeError):
        return False
    try:
        return len(words) >= 5 and words[0].isdigit() and all(map(math.isfinite, map(float, words)))
    except ValueError:
        return False


def _bare_lists(root: Path, images: Sequence[Path]) -> dict[str, list[Path]]:
    """Split name to the images that train.txt, val.txt and the like list; train must be one."""
    by_stem = {image.stem: image for image in images}
    listed = {
        split: _images_listed(file, root, by_stem) for split, file in split_lists(root).items()
    }
    found = {split: paths for split, paths in listed.items() if any(map(_is_image, paths))}
    return found if "train" in found else {}


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
