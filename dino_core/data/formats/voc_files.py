"""Where a Pascal VOC data set keeps its annotations, and which split each belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dino_core.data.faults import Fault, FaultLog
from dino_core.data.formats.layout import (
    files_in,
    folders_in,
    in_splits,
    label_folders,
    split_lists,
)
from dino_core.data.formats.values import read_text, start_of
from dino_core.data.formats.voc_xml import ROOT
from dino_core.errors import DataError
from dino_core.processing.image_files import IMAGE_SUFFIXES

VOC_LAYOUT = (
    "Annotations/*.xml with JPEGImages/ and, for splits, ImageSets/Main/{train,val,test}.txt, "
    "or {train,valid}/*.xml beside the images"
)
_FIRST_FILES = 10  # These are looked at to recognize the format, since one may be malformed.


@dataclass(frozen=True)
class VocFiles:
    """What there is to read.

    Attributes:
        root: The data set's folder.
        splits: Split name to its annotation files.
        faults: What is wrong with the lists of splits: lists that cannot be read or name nothing
            that is there, images without annotations or listed twice, annotations in no list.
        named: The splits that the data name, those included whose list names nothing.
        unlabeled: Names, without suffix, of the images of a test list of which none has labels.
    """

    root: Path
    splits: Mapping[str, list[Path]]
    faults: tuple[Fault, ...] = ()
    named: frozenset[str] = frozenset()
    unlabeled: Mapping[str, list[str]] = field(default_factory=dict)


def find_voc(path: Path) -> VocFiles | None:
    """The annotation files of a Pascal VOC data set; None where a path holds none.

    Raises:
        DataError: there are several data sets, or no list names an image that is there.
    """
    roots = _roots(path)
    if not roots:
        return None
    if len(roots) > 1:
        names = " and ".join(str(root.relative_to(path)) for root in roots)
        raise DataError(f"{path}: holds several data sets, {names}", "give one of them")
    [(root, folders)] = roots.items()
    lists = split_lists(root)
    # Lists divide one common folder. Where folders are named after splits, they already did that.
    if lists and list(folders) == [""]:
        log = FaultLog()
        listed, unlabeled = _listed(lists, folders[""], log)
        return VocFiles(root, listed, log.faults(), frozenset(lists), unlabeled)
    splits: dict[str, list[Path]] = {}
    for split, folder in folders.items():
        splits[split or "train"] = _xml_files(folder)
    return VocFiles(root, splits, named=frozenset(splits))


def _roots(path: Path) -> dict[Path, dict[str, Path]]:
    """Where a data set begins, with its annotation folders: here, or in folders such as VOC2012."""
    if not path.is_dir():
        return {}
    if folders := _annotation_folders(path):
        return {path: folders}
    # The official archive unpacks to VOCdevkit/VOC2012.
    years = [p for pattern in ("VOC[0-9]*", "VOCdevkit/VOC[0-9]*") for p in path.glob(pattern)]
    return {year: folders for year in sorted(years) if (folders := _annotation_folders(year))}


def _annotation_folders(root: Path) -> dict[str, Path]:
    """Split name to annotation folder; the name is empty where the folder's names no split."""
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
    """Whether one of the first XML files of a folder looks like a VOC annotation."""
    return any(map(_looks_like_voc, _xml_files(folder, deep)[:_FIRST_FILES]))


def _looks_like_voc(file: Path) -> bool:
    # Enough for the declaration and comments before the root element, without parsing every file.
    start = start_of(file, 4096)
    if start is None:
        return True  # The reader reports what is wrong with the file.
    start = start.replace(b"\0", b"")  # UTF-16 has a zero in each letter
    return f"<{ROOT}>".encode() in start or f"<{ROOT} ".encode() in start


def _xml_files(folder: Path, deep: bool = True) -> list[Path]:
    """The XML files of a folder; where it has none and `deep`, those of the folders in it."""
    files = files_in(folder, (".xml",))
    if deep and not files:
        return [file for inner in folders_in(folder) for file in _xml_files(inner)]
    return files


def _listed(
    lists: Mapping[str, Path], annotations: Path, log: FaultLog
) -> tuple[dict[str, list[Path]], dict[str, list[str]]]:
    """The annotation files of each list, and the images of a test list of which none has labels.

    Other lists that name no annotation that is there are left out.
    """
    # Lists hold stems, e.g. 2008_000008, or in other tools file names and paths.
    known = {file.stem: file for file in _xml_files(annotations)}
    splits: dict[str, list[Path]] = {}
    unlabeled: dict[str, list[str]] = {}
    trouble: DataError | None = None
    for split, file in lists.items():
        try:
            lines = read_text(file).splitlines()
        except DataError as error:
            # One damaged list is a fault to report. It is an error only if no other list is left.
            trouble = trouble or error
            log.add_error("malformed-file", error)
            continue
        members = _members(file, lines, known, log)
        if members:
            splits[split] = members
        elif split == "test":
            words = (line.split() for line in lines)
            unlabeled[split] = list(dict.fromkeys(_bare(each[0]) for each in words if each))
        elif any(map(str.strip, lines)):
            place = f"{file}: none of its images has an annotation file in {annotations}"
            trouble = trouble or DataError(place)
            log.add("missing-split", place)
    if not splits:
        folder = next(iter(lists.values())).parent
        raise trouble or DataError(f"{folder}: the lists name no images")
    used = {file for members in splits.values() for file in members}
    for file in known.values():
        if file not in used:
            log.add("image-not-listed", f"{file}: in no list of images")
    return splits, unlabeled


def _members(
    file: Path, lines: Sequence[str], known: Mapping[str, Path], log: FaultLog
) -> list[Path]:
    """The annotation files of one list, in its order, each once."""
    first_line: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        stem = _stem_of(line, known)
        place = f"{file} line {number}"
        if stem in first_line:
            first = first_line[stem]
            log.add("image-listed-twice", f"{place}: {stem} is also in line {first}")
        elif stem is not None:
            first_line[stem] = number
        elif line:
            log.add("missing-label", f"{place}: {line:.80}")
    return [known[stem] for stem in first_line]


def _stem_of(line: str, known: Mapping[str, Path]) -> str | None:
    """The image id in a line of a list: all of it, without folder or suffix, or its first word."""
    first = line.split()[0] if line else ""
    candidates = [line, _bare(line), first, _bare(first)]
    return next((candidate for candidate in candidates if candidate in known), None)


def _bare(name: str) -> str:
    """A file name without its folders, and without the suffix of an image or annotation."""
    name = name.replace("\\", "/").rpartition("/")[2]
    stem, _, suffix = name.rpartition(".")
    return stem if f".{suffix.lower()}" in IMAGE_SUFFIXES | {".xml"} else name
