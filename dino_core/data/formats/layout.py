"""Where data sets keep their annotation files, and which split a name means."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from dino_core.errors import DataError

COCO_LAYOUT = (
    "annotations/instances_{train,val}.json with images/{train,val}/ or images/, "
    "or {train,valid}/_annotations.coco.json, or a json of its own in each of {train,valid}/"
)
SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
ROBOFLOW_FILE = "_annotations.coco.json"
_ROBOFLOW_FILES = (ROBOFLOW_FILE, "_annotations.csv")
LABEL_FOLDERS = ("annotations", "Annotations", "labels")
_IMAGE_FOLDERS = ("images", "Images", "JPEGImages", "data")
_START = 4096  # bytes of a file that are looked at


def find_coco(path: Path) -> dict[str, Path]:
    """Split name to annotation file of a COCO data set; empty where `path` holds none.

    Raises:
        DataError: two files claim the same split.
    """
    if path.is_file():
        return {split_of(path) or "train": path} if path.suffix.lower() == ".json" else {}
    found = {
        split: file
        for split, names in SPLIT_NAMES.items()
        for name in names
        if (file := path / name / ROBOFLOW_FILE).is_file()
    }
    for folder in (*(path / name for name in LABEL_FOLDERS), path):
        if found:
            return found
        files = sorted(folder.glob("*.json")) if folder.is_dir() else []
        instances = [file for file in files if file.stem.startswith("instances_")]
        found = by_split(instances or filter(_looks_like_coco, files))
    return found or one_a_split(path, (".json",), _looks_like_coco)


def one_a_split(
    path: Path, suffixes: Sequence[str], fits: Callable[[Path], bool]
) -> dict[str, Path]:
    """The annotation file of each split's folder, where it is the only one there that fits."""
    found = {}
    for split, names in SPLIT_NAMES.items():
        for folder in (path / name / inner for name in names for inner in ("", *LABEL_FOLDERS)):
            files = [f for suffix in suffixes for f in folder.glob(f"*{suffix}") if fits(f)]
            if len(files) == 1 and split not in found:
                found[split] = files[0]
    return found


def by_split(files: Iterable[Path]) -> dict[str, Path]:
    """Split name to annotation file, by their names; a lone file whose name tells none is train.

    Raises:
        DataError: two files claim the same split.
    """
    found: dict[str, Path] = {}
    others: list[Path] = []
    for file in files:
        split = split_of(file)
        if split is None:
            others.append(file)
        elif split in found:
            raise DataError(
                f"{file.parent}: both {found[split].name} and {file.name} are a {split} split",
                "give the annotation file itself instead of the folder",
            )
        else:
            found[split] = file
    if len(others) == 1 and "train" not in found:
        found = {"train": others[0], **found}
    return found


def split_of(file: Path) -> str | None:
    """The split that an annotation file's name or, in Roboflow's layout, its folder tells."""
    if file.name in _ROBOFLOW_FILES:
        folder = file.parent.name.lower()
        return next((split for split, names in SPLIT_NAMES.items() if folder in names), None)
    return split_in(file.stem)


def split_in(name: str) -> str | None:
    """The split that a word of a file or folder name tells, e.g. "instances_val2017"."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[-. ]", "_", name).lower().split("_")
    for split, names in SPLIT_NAMES.items():
        if any(word.rstrip("0123456789") in names for word in words):
            return split
    return None


def _looks_like_coco(file: Path) -> bool:
    """Whether a json file holds COCO's images, by its start; a long one may go on to have them."""
    try:
        with file.open("rb") as stream:
            start = stream.read(_START)
    except OSError:
        return True  # let the reader say what is wrong
    keys = [b'"images"']
    if len(start) == _START:
        keys += [b'"annotations"', b'"categories"', b'"info"']
    is_object = start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    return is_object and any(key in start for key in keys)


def root_of(file: Path) -> Path:
    """The data set's folder, of one of its annotation files."""
    folder = file.parent
    return folder.parent if folder.name in LABEL_FOLDERS else folder


def image_folders(root: Path, file: Path, split: str) -> list[Path]:
    """Where the images of a split may lie, most specific first."""
    tail = file.stem.partition("_")[2]  # instances_train2017 -> train2017
    names = [name for name in (tail, *SPLIT_NAMES[split]) if name]
    folders = [file.parent] if file.name in _ROBOFLOW_FILES else []
    folders += [root / images / name for images in _IMAGE_FOLDERS for name in names]
    folders += [root / name / images for images in _IMAGE_FOLDERS for name in names]
    folders += [root / name for name in names] + [root / images for images in _IMAGE_FOLDERS]
    folders += [root, file.parent / "images", file.parent]
    return list(dict.fromkeys(folder for folder in folders if folder.is_dir()))
