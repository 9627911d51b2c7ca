"""Where data sets keep their annotation files, and which split a name means."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from dino_core.errors import DataError

_SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
# Upper and capitalized spellings too, because file systems may distinguish them.
SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    split: (*words, *map(str.capitalize, words), *map(str.upper, words))
    for split, words in _SPLIT_WORDS.items()
}
_CONTENTS = {  # what else the name of a split's folder may say
    "image", "images", "img", "imgs", "photo", "photos", "label", "labels", "annotation",
    "annotations", "xml", "csv", "coco", "set", "data", "dataset", "split", "folder", "zip",
}  # fmt: skip
ROBOFLOW_FILE = "_annotations.coco.json"
ROBOFLOW_CSV = "_annotations.csv"
_ROBOFLOW_FILES = (ROBOFLOW_FILE, ROBOFLOW_CSV)
_USUAL_LABEL_FOLDERS = ("annotations", "Annotations", "labels")
_LABEL_FOLDER = re.compile(r"(annot|label).*|xmls?|coco|csv|json", re.IGNORECASE)
_IMAGE_FOLDERS = ("images", "Images", "JPEGImages", "data")
_LIST_FOLDERS = ("ImageSets/Main", "ImageSets", "")


def find_annotations(
    path: Path,
    roboflow_file: str,
    suffixes: Sequence[str],
    choose: Callable[[Sequence[Path]], Sequence[Path]],
) -> dict[str, Path]:
    """Split name to annotation file of a folder; `choose` picks those of one format.

    They may lie in Roboflow's places, all together, or alone in each split's folder.

    Raises:
        DataError: two files claim the same split.
    """

    def chosen(folder: Path) -> Sequence[Path]:
        return choose(files_in(folder, suffixes))

    found: dict[str, Path] = {}
    for split, folder in in_splits(path):
        # Roboflow's exports have one folder per split with images and a file of this name in it.
        if (file := folder / roboflow_file).is_file():
            found.setdefault(split, file)
    for folder in (*label_folders(path), path):
        # The first folder that has any files wins, and the usual ones come first.
        found = found or by_split(chosen(folder))
    if found:
        return found
    for split, folder in in_splits(path):
        for inner in (folder, *label_folders(folder)):
            files = chosen(inner)
            # Several files in a split's folder would need a rule for which one counts.
            if len(files) == 1:
                found.setdefault(split, files[0])
    return found


def label_folders(root: Path) -> list[Path]:
    """The folders of labels in `root`, the usual ones first, each before one that is in it."""
    found = [folder for folder in folders_in(root) if _LABEL_FOLDER.fullmatch(folder.name)]
    usual = {root / name: i for i, name in enumerate(_USUAL_LABEL_FOLDERS)}
    found.sort(key=lambda folder: usual.get(folder, len(usual)))
    return [each for folder in found for each in (folder, *label_folders(folder))]


def in_splits(root: Path) -> list[tuple[str, Path]]:
    """Each split with the folders of `root` whose names mean it.

    Those named just as a split come first; names that say more ("train2017", "Train Set") follow.
    A lone folder that says more may be the whole set ("test-data"), and is no split.
    """
    splits = list(SPLIT_NAMES)
    found = []
    folders = folders_in(root)
    for folder in folders:
        split = split_in(folder.name)
        if split is None:
            continue
        # "train2017" and "Train Set" are splits, "train-station-photos" is a subject.
        more = _words(folder.name) - set(SPLIT_NAMES[split])
        if not more or (more <= _CONTENTS and len(folders) > 1):
            # A plain "val" comes before "val2017" where both exist.
            usual = (*SPLIT_NAMES[split], folder.name).index(folder.name)
            found.append((splits.index(split), usual, split, folder))
    return [(split, folder) for *_, split, folder in sorted(found)]


def folders_by_split(root: Path, holds: Callable[[Path], bool]) -> dict[str, Path]:
    """Split name to the folder of its label files, where each image has a file of its own.

    Args:
        root: The data set's folder.
        holds: Whether a folder holds label files of the format in question.

    Returns: Folders by split; the name is empty for one folder that names no split, and nothing is
        returned where there is none.
    """
    found: dict[str, Path] = {}
    inside = label_folders(root)
    for split, place in (each for folder in (root, *inside) for each in in_splits(folder)):
        if split not in found:
            folder = next(filter(holds, (place, *label_folders(place))), None)
            found.update({} if folder is None else {split: folder})
    if not found:
        # A data set without splits: one folder of labels, which the caller takes as training data.
        found.update([("", folder) for folder in (*inside, root) if holds(folder)][:1])
    return found


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones; none where it is not there."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    return [folder / name for name in sorted(names) if not name.startswith(".")]


def files_in(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files in a folder of some suffixes, in any case, sorted, without hidden ones."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    return [folder / n for n in sorted(names) if os.path.splitext(n)[1].lower() in suffixes]


def split_lists(root: Path) -> dict[str, Path]:
    """Split name to list of images, such as train.txt, in Pascal VOC's folders or the root.

    All are of one folder, the first with a list for training if there is one. trainval is train
    where there is neither train nor val. The devkit's lists by class (`cat_train.txt`) are about
    classification and not read.
    """
    found = list(filter(None, map(_lists_in, (root / place for place in _LIST_FOLDERS))))
    return next((lists for lists in found if "train" in lists), found[0] if found else {})


def _lists_in(folder: Path) -> dict[str, Path]:
    lists: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        files = (folder / f"{name}.txt" for name in names)
        if file := next(filter(Path.is_file, files), None):
            lists[split] = file
    # The devkit's trainval is the union of train and val, so it must not be read beside either.
    both = folder / "trainval.txt"
    if both.is_file() and not lists.keys() & {"train", "val"}:
        lists = {"train": both, **lists}
    return lists


def by_split(files: Iterable[Path]) -> dict[str, Path]:
    """Split name to annotation file, by their names; a lone file whose name means none is train.

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
    # A lone file called e.g. "annotations.json" beside "val.json" is the training split. With two
    # such files it would be a guess.
    if len(others) == 1 and "train" not in found:
        found = {"train": others[0], **found}
    return found


def split_of(file: Path) -> str | None:
    """The split that an annotation file's name or, in Roboflow's layout, its folder means."""
    if file.name in _ROBOFLOW_FILES:
        folder = file.parent.name.lower()
        return next((split for split, names in SPLIT_NAMES.items() if folder in names), None)
    return split_in(file.stem)


def split_in(name: str) -> str | None:
    """The split that a word of a file or folder name means, e.g. "instances_val2017"; one only."""
    words = _words(name)
    meant = [split for split, names in SPLIT_NAMES.items() if not words.isdisjoint(names)]
    # "train_val" means two splits, so it means neither.
    return meant[0] if len(meant) == 1 else None


def _words(name: str) -> set[str]:
    """The words of a name, in lower case, without the digits at their ends."""
    # CamelCase is divided between a small and a capital letter, and years are cut off at the end.
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[-. ()]", "_", name).lower().split("_")
    return {word.rstrip("0123456789") for word in words} - {""}


def root_of(file: Path) -> Path:
    """The data set's folder, of one of its annotation files."""
    # A file in annotations/ belongs to the folder above.
    folders = (folder for folder in file.parents if not _LABEL_FOLDER.fullmatch(folder.name))
    return next(folders, file.parent)


def image_folders(root: Path, file: Path, split: str) -> list[Path]:
    """Where the images of a split may lie, most specific first."""
    tail = file.stem.partition("_")[2]  # instances_train2017 -> train2017
    # The more specific place must come first, since two splits may have images of the same names.
    names = [name for name in (tail, *SPLIT_NAMES[split]) if name]
    folders = [file.parent] if file.name in _ROBOFLOW_FILES else []
    own = root_of(file)
    if root in own.parents:  # the split's own folder, by whatever name
        folders += [*(own / images for images in _IMAGE_FOLDERS), own]
    folders += [root / images / name for images in _IMAGE_FOLDERS for name in names]
    folders += [root / name / images for images in _IMAGE_FOLDERS for name in names]
    folders += [root / name for name in names] + [root / images for images in _IMAGE_FOLDERS]
    folders += [root, file.parent / "images", file.parent]
    return list(dict.fromkeys(folder for folder in folders if folder.is_dir()))
