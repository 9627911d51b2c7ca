"""The data.yaml of a YOLO data set: its folder, splits, class names and number of keypoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dino_core.data.formats.layout import SPLIT_NAMES, files_in
from dino_core.data.formats.values import listed, read_text, whole_number
from dino_core.errors import DataError
from dino_core.limits import shown

_FILE_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_SUFFIXES = (".yaml", ".yml")
_MOST_BYTES = 2 << 20
MOST_CLASSES = 100_000
"""Bounds the tables of classes that no file names."""


@dataclass(frozen=True)
class SplitEntry:
    """One split as data.yaml states it.

    Attributes:
        where: The file and the key, for errors.
        places: Folders, .txt lists of images or both, as written.
    """

    where: str
    places: tuple[str, ...]


@dataclass(frozen=True)
class DataYaml:
    """What a data.yaml states. Nothing of it has been looked up on disk, except the root.

    Attributes:
        file: The file itself.
        root: The folder to which its paths are relative.
        names: Class names; None where it states none.
        splits: Split name to where its images are.
        malformed: Splits whose entry is neither a path nor a list of paths, and the error.
        keypoints: How many numbers follow each box, in a data set of poses.
    """

    file: Path
    root: Path
    names: tuple[str, ...] | None
    splits: Mapping[str, SplitEntry]
    malformed: Mapping[str, DataError]
    keypoints: int


def find_data_yaml(path: Path) -> DataYaml | None:
    """The data.yaml at a path, which is the file itself or the data set's folder.

    In a folder, any yaml file that has the keys of a data.yaml is taken where none has its name.

    Raises:
        DataError: the file is no valid YAML, or its entries are malformed or contradict each other.
    """
    if path.is_file():
        return _parse(path, _load(path)) if path.suffix.lower() in _SUFFIXES else None
    for name in _FILE_NAMES:
        if (file := path / name).is_file():
            return _parse(file, _load(file))
    # A project may keep other YAML files here (training settings, docker compose), so the keys
    # decide.
    for file in files_in(path, _SUFFIXES):
        table = _load_or_empty(file)
        if "train" in table and table.keys() & {"names", "nc"}:
            return _parse(file, table)
    return None


def _load(file: Path) -> dict[str, Any]:
    """The table in a yaml file, every value as text: a class named `no` or `1` stays a name."""
    try:
        # BaseLoader makes no objects and no types, so it is as safe as the safe loader.
        table = yaml.load(read_text(file, _MOST_BYTES), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise DataError(f"{file}: not valid YAML: {' '.join(str(error).split()):.300}") from error
    except RecursionError as error:
        raise DataError(f"{file}: not usable YAML (nested too deeply)") from error
    if not isinstance(table, dict):
        raise DataError(f"{file}: expected keys like train, val and names, found {shown(table)}")
    return table


def _load_or_empty(file: Path) -> dict[str, Any]:
    """The table in a yaml file that may be about anything; empty if there is none."""
    try:
        return _load(file)
    except DataError:
        return {}


def _parse(file: Path, table: Mapping[str, Any]) -> DataYaml:
    names = _names_in(table, file)
    splits, malformed = _splits_in(table, file)
    keypoints = _keypoints_in(table, file)
    return DataYaml(file, _root_in(table, file), names, splits, malformed, keypoints)


def _root_in(table: Mapping[str, Any], file: Path) -> Path:
    """The folder that `path` names; the file's own where that is not on this machine."""
    stated = table.get("path")
    folder = file.parent / stated if isinstance(stated, str) and stated else file.parent
    # `path` is often the absolute folder of the author's machine, e.g. /content/datasets of a
    # notebook.
    return folder if folder.is_dir() else file.parent


def _splits_in(
    table: Mapping[str, Any], file: Path
) -> tuple[dict[str, SplitEntry], dict[str, DataError]]:
    """The splits with an entry, and the errors of those whose entry is malformed."""
    splits: dict[str, SplitEntry] = {}
    malformed: dict[str, DataError] = {}
    for split, keys in SPLIT_NAMES.items():
        # An empty entry, such as "test:" without a value, means that there is no such split.
        key = next((key for key in keys if table.get(key)), None)
        if key is None:
            continue
        # Ultralytics accepts several folders per split.
        places = table[key] if isinstance(table[key], list) else [table[key]]
        if all(isinstance(place, str) for place in places):
            splits[split] = SplitEntry(f"{file}: '{key}'", tuple(places))
        else:
            # Not raised yet: a split that nobody asks for must not stop the others.
            error = DataError(f"{file}: '{key}' is {shown(table[key])}, expected a folder")
            malformed[split] = error
    if not splits and not malformed:
        raise DataError(
            f"{file}: neither 'train' nor 'val' is given, found {listed(table)}",
            "e.g. train: images/train",
        )
    return splits, malformed


def _names_in(table: Mapping[str, Any], file: Path) -> tuple[str, ...] | None:
    """The class names by `names`, a list or a table by index, or else as many as `nc` states."""
    names, count = table.get("names"), _class_count(table, file)
    if names is None or names == "":
        return None if count is None else tuple(f"class_{i}" for i in range(count))
    # Newer files have a table by index, older ones a list.
    if isinstance(names, dict):
        names = _in_order(names, file)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: names is {shown(names)}, expected a list of class names")
    # A mismatch would give boxes wrong names, as the label files hold indices only.
    if count is not None and count != len(names):
        raise DataError(f"{file}: nc is {count}, but names has {len(names)} classes")
    return tuple(name.strip() for name in names)


def _class_count(table: Mapping[str, Any], file: Path) -> int | None:
    count = table.get("nc")
    if count is None:
        return None
    found = whole_number(count)
    if found is None or not 0 <= found <= MOST_CLASSES:
        expected = f"expected the number of classes, at most {MOST_CLASSES:,}"
        raise DataError(f"{file}: nc is {shown(count)}, {expected}")
    return found


def _in_order(names: Mapping[str, Any], file: Path) -> list[Any]:
    """The values of a table whose keys are 0, 1, 2 and so on."""
    if names.keys() != set(map(str, range(len(names)))):
        keys = listed(names)
        raise DataError(f"{file}: names has the keys {keys}, expected 0 to {len(names) - 1}")
    return [names[str(i)] for i in range(len(names))]


def _keypoints_in(table: Mapping[str, Any], file: Path) -> int:
    """How many numbers of a line are keypoints: `kpt_shape` is their count and 2 or 3 for each."""
    shape = table.get("kpt_shape")
    if shape is None:
        return 0
    numbers = list(map(whole_number, shape)) if isinstance(shape, list) else []
    found = [each for each in numbers if each is not None and each >= 0]
    if len(numbers) != 2 or len(found) != 2:
        raise DataError(f"{file}: kpt_shape is {shown(shape)}, expected e.g. [17, 3]")
    return found[0] * found[1]
