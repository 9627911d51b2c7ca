"""Where a Pascal VOC data set keeps its annotations, and which split each belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dino_core.data.formats.layout import folders_in, in_splits, label_folders, split_lists
from dino_core.data.formats.repairs import Repairs
from dino_core.data.formats.voc_xml import ROOT
from dino_core.errors import DataError
from dino_core.processing.image_files import IMAGE_SUFFIXES

VOC_LAYOUT = (
    "Annotations/*.xml with JPEGImages/ and, for splits, ImageSets/Main/{train,val,test}.txt, "
    "or {train,valid}/*.xml beside the images"
)


@dataclass(frozen=True)
class VocFiles:
    """What there is to read.

    Attributes:
        root: The data set's folder.
        splits: Split name to its annotation files.
    """

    root: Path
    splits: Mapping[str, list[Path]]


def is_voc(path: Path) -> bool:
    """Whether `path` is a folder that holds Pascal VOC annotations."""
    return any(_annotation_folders(root) for root in _roots(path))


def find_voc(path: Path, repairs: Repairs) -> VocFiles:
    """The annotation files of a Pascal VOC data set.

    Raises:
        DataError: there are none, or several data sets, or a list names files that are not there.
    """
    roots = [root for root in _roots(path) if _annotation_folders(root)]
    if not roots:
        raise DataError(f"{path}: no Pascal VOC data set found", f"expected {VOC_LAYOUT}")
    if len(roots) > 1:
        names = " and ".join(str(root.relative_to(path)) for root in roots)
        raise DataError(f"{path}: holds several data sets, {names}", "give one of them")
    root = roots[0]
    folders = _annotation_folders(root)
    lists = split_lists(root)
    if lists and list(folders) == [""]:
        return VocFiles(root, _listed(lists, folders[""], repairs))
    splits: dict[str, list[Path]] = {}
    for split, folder in folders.items():
        splits[split or "train"] = _xml_files(folder)
    return VocFiles(root, splits)


def _roots(path: Path) -> list[Path]:
    """Where the data set may begin: here, or in the devkit's year folders (VOC2007, VOC2012)."""
    if not path.is_dir():
        return []
    if _annotation_folders(path):
        return [path]
    return sorted(p for pattern in ("VOC[0-9]*", "VOCdevkit/VOC[0-9]*") for p in path.glob(pattern))


def _annotation_folders(root: Path) -> dict[str, Path]:
    """Split name to annotation folder; the name is empty where the folder tells no split."""
    found: dict[str, Path] = {}
    inside = label_folders(root)
    for split, place in (each for folder in (root, *inside) for each in in_splits(folder)):
        if split not in found and _holds_voc(place):
            found[split] = place
    if not found:
        found.update(
            [("", place) for place in (*inside, root) if _holds_voc(place, place != root)][:1]
        )
    return found


def _holds_voc(folder: Path, deep: bool = True) -> bool:
    """Whether the first xml file of a folder looks like a VOC annotation."""
    first = next(iter(_xml_files(folder, deep)), None)
    if first is None:
        return False
    try:
        with first.open("rb") as stream:
            start = stream.read(4096).replace(b"\0", b"")
    except OSError:
        return True  # let the reader say what is wrong
    return f"<{ROOT}>".encode() in start or f"<{ROOT} ".encode() in start


def _xml_files(folder: Path, deep: bool = True) -> list[Path]:
    """The xml files of a folder; where it has none and `deep`, those of the folders in it."""
    files = sorted(file for file in folder.glob("*.xml") if not file.name.startswith("."))
    if deep and not files:
        return [file for inner in folders_in(folder) for file in _xml_files(inner)]
    return files


def _listed(
    lists: Mapping[str, Path], annotations: Path, repairs: Repairs
) -> dict[str, list[Path]]:
    """The annotation files of each list; files in no list are noted, empty lists passed over."""
    known = {file.stem: file for file in _xml_files(annotations)}
    splits = {}
    for split, file in lists.items():
        stems = _read_list(file, known, annotations, repairs)
        if stems:
            splits[split] = [known[stem] for stem in stems]
    if not splits:
        file = next(iter(lists.values()))
        raise DataError(f"{file.parent}: the lists name no images")
    used = {file for members in splits.values() for file in members}
    for file in known.values():
        if file not in used:
            repairs.add(
                "annotation file is in no list of images and was left out",
                "annotation files are in no list of images and were left out",
                str(file),
            )
    return splits


def _read_list(
    file: Path, known: Mapping[str, Path], annotations: Path, repairs: Repairs
) -> list[str]:
    """The image ids of one list that have an annotation file, in its order."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    listed: dict[str, int] = {}
    missing = ""
    for number, line in enumerate(map(str.strip, lines), start=1):
        stem = _stem_of(line, known)
        if stem in listed:
            raise DataError(
                f"{file} line {number}: {stem} is listed twice, first in line {listed[stem]}"
            )
        if stem is not None:
            listed[stem] = number
        elif line:
            missing = missing or line
            repairs.add(
                "listed image has no annotation file and was left out",
                "listed images have no annotation files and were left out",
                f"{file} line {number}: {line:.80}",
            )
    if missing and not listed:
        raise DataError(
            f"{file}: none of its images has an annotation file, e.g. {missing:.80}",
            f"looked in {annotations}",
        )
    return list(listed)


def _stem_of(line: str, known: Mapping[str, Path]) -> str | None:
    """The image id in a line of a list: all of it, without folder or suffix, or its first word."""
    name = line.replace("\\", "/").rpartition("/")[2]
    stem, _, suffix = name.rpartition(".")
    candidates = [line, name, stem if f".{suffix.lower()}" in IMAGE_SUFFIXES else "", *line.split()]
    return next((candidate for candidate in candidates[:4] if candidate in known), None)
