"""Where a COCO data set keeps its annotation files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_core.data.formats.layout import ROBOFLOW_FILE, find_annotations, root_of, split_of
from dino_core.data.formats.values import start_of

COCO_LAYOUT = (
    "annotations/instances_{train,val}.json with images/{train,val}/ or images/, "
    "or {train,valid}/_annotations.coco.json, or a json of its own in each of {train,valid}/"
)
_START = 4096  # bytes of a file that are looked at


@dataclass(frozen=True)
class CocoFiles:
    """What there is to read: the data set's folder, and split name to annotation file."""

    root: Path
    annotations: Mapping[str, Path]


def find_coco(path: Path) -> CocoFiles | None:
    """The annotation files of a COCO data set, a folder or one file; None where there are none.

    Raises:
        DataError: two files claim the same split.
    """
    if path.is_file():
        if path.suffix.lower() != ".json":
            return None
        return CocoFiles(root_of(path), {split_of(path) or "train": path})
    files = find_annotations(path, ROBOFLOW_FILE, (".json",), _coco_files)
    return CocoFiles(path, files) if files else None


def _coco_files(files: Sequence[Path]) -> Sequence[Path]:
    instances = [file for file in files if file.stem.startswith("instances_")]
    return instances or [file for file in files if looks_like_coco(file)]


def looks_like_coco(file: Path) -> bool:
    """Whether a json file holds COCO's images, by its start; a long one may go on to have them."""
    start = start_of(file, _START)
    if start is None:
        return True
    keys = [b'"images"']
    if len(start) == _START:
        keys += [b'"annotations"', b'"categories"', b'"info"']
    is_object = start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    return is_object and any(key in start for key in keys)
