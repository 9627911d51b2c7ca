"""Why a path is no data set that can be read: files of other tools, and the way out of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from dino_core.data.formats.coco_files import looks_like_coco
from dino_core.data.formats.csv_columns import columns_of, split_line
from dino_core.data.formats.values import listed, start_of
from dino_core.errors import DataError
from dino_core.processing.image_files import HEIC_REMEDY, HEIC_SUFFIXES, LFS_REMEDY, is_lfs_pointer

_START = 4096  # bytes of a file that are looked at
_MOST_FILES = 2000  # of a folder and those in it
_EXPORT = "export it as COCO or YOLO there"
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")


def explain(path: Path) -> DataError | None:
    """The error for a folder or file that no format reads, where its content is known; else None.

    Args:
        path: An existing folder or file.
    """
    files = [path] if path.is_file() else list(islice(_files_below(path), _MOST_FILES))
    for each in (_archive, _several_coco, _tool, _heic, _pointers, _table):
        if (error := each(path, files)) is not None:
            return error
    return None


def _files_below(folder: Path) -> list[Path]:
    """The files in a folder and the folders in it, down to two levels, without hidden ones."""
    found: list[Path] = []
    for root, folders, files in os.walk(folder):
        depth = len(Path(root).relative_to(folder).parts)
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")) and depth < 2)
        found += [Path(root, file) for file in sorted(files) if not file.startswith(".")]
        if len(found) >= _MOST_FILES:
            break
    return found


def _archive(path: Path, files: Sequence[Path]) -> DataError | None:
    if path.suffix.lower() in _ARCHIVES and path.is_file():
        return DataError(f"{path}: is an archive", "unpack it, and give the folder")
    packed = [file for file in files if file.suffix.lower() in _ARCHIVES]
    if packed and len(packed) == len(files):
        return DataError(f"{path}: holds an archive, {packed[0].name}", "unpack it first")
    return None


def _several_coco(path: Path, files: Sequence[Path]) -> DataError | None:
    """Two files of COCO's in one folder, whose names mean no split."""
    by_folder: dict[Path, list[str]] = {}
    for file in files:
        if file.suffix.lower() == ".json" and looks_like_coco(file):
            by_folder.setdefault(file.parent, []).append(file.name)
    for folder, names in by_folder.items():
        if len(names) > 1 and path.is_dir():
            return DataError(
                f"{folder}: holds several COCO files, {listed(names)}, and their names mean no "
                "split",
                "give one of them, or name them train.json and val.json",
            )
    return None


def _has(*keys: bytes) -> Callable[[bytes], bool]:
    return lambda start: all(key in start for key in keys)


def _is_kitti(start: bytes) -> bool:
    """Lines of a class and 14 or 15 numbers."""
    words = start.partition(b"\n")[0].split()
    if len(words) not in (15, 16) or words[0][:1].isdigit():
        return False
    return all(word.lstrip(b"-").replace(b".", b"", 1).isdigit() for word in words[1:])


# Name of the tool, suffix of its files, and how their first bytes are known.
_TOOLS: tuple[tuple[str, str, Callable[[bytes], bool]], ...] = (
    ("CVAT (annotations.xml)", ".xml", _has(b"<annotations", b"<image ")),
    ("CVAT (annotations.xml)", ".xml", _has(b"<annotations", b"<meta")),
    ("Label Studio", ".json", _has(b'"result"', b'"annotations"')),
    ("Label Studio", ".json", _has(b"rectanglelabels")),
    ("the VGG Image Annotator (VIA)", ".json", _has(b'"regions"', b'"filename"')),
    ("the VGG Image Annotator (VIA)", ".json", _has(b"_via_")),
    ("CreateML", ".json", _has(b'"coordinates"', b'"annotations"')),
    ("Supervisely", ".json", _has(b'"classTitle"', b'"points"')),
    ("Labelbox", ".json", _has(b'"data_row"')),
    ("Labelbox", ".ndjson", _has(b'"data_row"')),
    ("BDD100K", ".json", _has(b'"box2d"')),
    ("Hugging Face's image folders (metadata.jsonl)", ".jsonl", _has(b'"file_name"')),
    ("Amazon SageMaker Ground Truth", ".manifest", _has(b"source-ref")),
    ("KITTI", ".txt", _is_kitti),
)


def _tool(path: Path, files: Sequence[Path]) -> DataError | None:
    suffixes = {suffix for _, suffix, _ in _TOOLS}
    for file in files:
        suffix = file.suffix.lower()
        if suffix not in suffixes or (start := start_of(file, _START)) is None:
            continue
        for name, its_suffix, is_its in _TOOLS:
            if suffix == its_suffix and is_its(start):
                place = path if file == path else file
                return DataError(f"{place}: labels of {name}, which are not read yet", _EXPORT)
    return None


def _heic(path: Path, files: Sequence[Path]) -> DataError | None:
    count = sum(file.suffix.lower() in HEIC_SUFFIXES for file in files)
    if not count:
        return None
    images = "1 HEIC image, which is" if count == 1 else f"{count} HEIC images, which are"
    return DataError(f"{path}: no data set recognized, found {images} not read", HEIC_REMEDY)


def _pointers(path: Path, files: Sequence[Path]) -> DataError | None:
    pointers = [file for file in files if is_lfs_pointer(start_of(file, _START) or b"")]
    if not pointers:
        return None
    return DataError(f"{pointers[0]}: a Git LFS pointer, not the file itself", LFS_REMEDY)


def _table(path: Path, files: Sequence[Path]) -> DataError | None:
    """The one table of a folder, and why it is not read."""
    tables = [file for file in files if file.suffix.lower() in (".csv", ".tsv")]
    if len(tables) != 1 or (start := start_of(tables[0], _START)) is None:
        return None
    _, first = split_line(start.decode("utf-8-sig", "replace").partition("\n")[0])
    if columns_of(first) is not None:
        return None
    found = f"the columns are {listed(first)}, expected those of an image and a box"
    return DataError(
        f"{tables[0]} line 1: {found}",
        "e.g. filename,class,xmin,ymin,xmax,ymax",
    )
