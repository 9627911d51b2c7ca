"""COCO json, also as Roboflow lays it out: reading, and the search for the files of a data set."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_core.data.formats.repairs import Repairs, make_record, upright_size
from dino_core.data.records import DatasetIndex, ImageRecord
from dino_core.detections import ClassMap
from dino_core.errors import DataError

LAYOUT = (
    "annotations/instances_{train,val}.json with images/{train,val}/ or images/, "
    "or {train,valid}/_annotations.coco.json"
)
SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_ROBOFLOW = "_annotations.coco.json"
_SAME_ASPECT = 0.01  # sizes whose aspect differs by less are one image at two resolutions


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
        if (file := path / name / _ROBOFLOW).is_file()
    }
    for folder in (path / "annotations", path):
        if found:
            return found
        files = sorted(folder.glob("*.json")) if folder.is_dir() else []
        instances = [file for file in files if file.stem.startswith("instances_")]
        found = _by_split(instances or files)
        if not found and len(files) == 1 and looks_like_coco(files[0]):
            found = {"train": files[0]}
    return found


def _by_split(files: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        split = split_of(file)
        if split is None or not looks_like_coco(file):
            continue
        if split in found:
            raise DataError(
                f"{file.parent}: both {found[split].name} and {file.name} are a {split} split",
                "give the annotation file itself instead of the folder",
            )
        found[split] = file
    return found


def split_of(file: Path) -> str | None:
    """The split that an annotation file's name or, in Roboflow's layout, its folder tells."""
    name = file.parent.name if file.name == _ROBOFLOW else file.stem
    words = name.lower().replace("-", "_").replace(".", "_").split("_")
    for split, names in SPLIT_NAMES.items():
        if any(word.rstrip("0123456789") in names for word in words):
            return split
    return None


def looks_like_coco(file: Path) -> bool:
    """Whether the start of a json file is an object that has, or may go on to have, COCO's keys."""
    try:
        with file.open("rb") as stream:
            start = stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        return True  # let the reader say what is wrong
    if not start.startswith(b"{"):
        return False
    keys = (b'"images"', b'"annotations"', b'"categories"', b'"info"', b'"licenses"')
    return len(start) < 4000 or any(key in start for key in keys)


def read_coco(path: Path) -> DatasetIndex:
    """Read a COCO data set: a folder (see `LAYOUT`) or one annotation file.

    Crowds and images without boxes are kept. Boxes outside their images are clipped, boxes without
    area, images without a readable file and images of another size than stated are left out; the
    index's warnings tell.

    Raises:
        DataError: a file is missing or malformed, naming the entry.
    """
    files = find_coco(path)
    if not files:
        raise DataError(f"{path}: no COCO annotations found", f"expected {LAYOUT}, or a json file")
    repairs = Repairs()
    sets = {split: _Annotations.load(file) for split, file in files.items()}
    classes = _join_classes(sets, repairs)
    root = path if path.is_dir() else _root_of(path)
    splits = {
        split: _read_split(annotations, _folders(root, annotations.file, split), classes, repairs)
        for split, annotations in sets.items()
    }
    return DatasetIndex(root, "coco", classes, splits, repairs.sentences())


def _root_of(file: Path) -> Path:
    folder = file.parent
    return folder.parent if folder.name.lower() == "annotations" else folder


@dataclass(frozen=True)
class _Annotations:
    """The three lists of one annotation file, their shape checked but not their entries."""

    file: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]

    @classmethod
    def load(cls, file: Path) -> _Annotations:
        try:
            data = json.loads(file.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
        except json.JSONDecodeError as error:
            raise DataError(
                f"{file} line {error.lineno}: not valid JSON ({error.msg})",
                "the file may be truncated; write or download it again",
            ) from error
        except (UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"{file}: not valid JSON ({error})") from error
        if not isinstance(data, dict):
            raise DataError(
                f"{file}: expected a JSON object with images, annotations and categories, "
                f"found a {type(data).__name__}",
                "a list of results is not a data set" if isinstance(data, list) else "",
            )
        return cls(file, *(_entries(file, data, key) for key in _KEYS))


_KEYS = ("images", "annotations", "categories")


def _entries(file: Path, data: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The list `key` of a COCO file; DataError where it is missing or holds other than objects."""
    if key not in data:
        found = ", ".join(map(str, data)) or "nothing"
        raise DataError(
            f"{file}: the key '{key}' is missing, found {found}",
            "a COCO file has images, annotations and categories",
        )
    entries = data[key]
    if not isinstance(entries, list):
        raise DataError(f"{file}: '{key}' is a {type(entries).__name__}, expected a list")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(f"{file}: {key}[{i}] is {entry!r:.60}, expected an object")
    return entries


def _get(entry: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in entry:
        raise DataError(f"{where}: the key '{key}' is missing, found {', '.join(entry)}")
    return entry[key]


def _integer(value: Any, what: str, where: str) -> int:
    """`value` as an integer; whole floats and digits in quotes are taken."""
    if isinstance(value, str) and value.strip().lstrip("-").isdigit():
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{where}: {what} is {value!r:.60}, expected an integer")
    return value


def _unique_id(entry: Mapping[str, Any], seen: Mapping[int, Any], kind: str, where: str) -> int:
    entry_id = _integer(_get(entry, "id", where), "id", where)
    if entry_id in seen:
        raise DataError(f"{where}: the {kind} id {entry_id} is used twice", "ids must be unique")
    return entry_id


def _join_classes(sets: Mapping[str, _Annotations], repairs: Repairs) -> ClassMap:
    """The categories of all splits, by id.

    Roboflow adds a parent category that no box uses, often with a class's own name; it is left out.
    """
    names: dict[int, str] = {}
    origin: dict[int, Path] = {}
    used: Counter[Any] = Counter()
    parents: set[str] = set()
    for annotations in sets.values():
        file, here = annotations.file, {}
        used.update(str(a.get("category_id")) for a in annotations.annotations)
        for i, category in enumerate(annotations.categories):
            where = f"{file}: categories[{i}]"
            category_id = _unique_id(category, here, "category", where)
            name = str(_get(category, "name", where)).strip()
            if names.get(category_id, name) != name:
                raise DataError(
                    f"{where}: category {category_id} is '{name}' here and "
                    f"'{names[category_id]}' in {origin[category_id]}",
                    "all splits must have the same categories",
                )
            here[category_id] = names[category_id] = name
            origin[category_id] = file
            parents.add(str(category.get("supercategory")))
    if not names:
        raise DataError(f"{next(iter(sets.values())).file}: 'categories' is empty")
    for category_id in sorted(names):
        name = names[category_id]
        twin = list(names.values()).count(name) > 1
        is_parent = name in parents and category_id == 0
        if not used[str(category_id)] and (is_parent or twin) and len(names) > 1:
            place = f"{origin[category_id]}: category {category_id} '{names.pop(category_id)}'"
            repairs.add(
                "category without boxes that only groups others was left out",
                "categories without boxes that only group others were left out",
                place,
            )
    ids = sorted(names)
    try:
        return ClassMap(tuple(names[i] for i in ids), tuple(ids))
    except DataError as error:
        raise DataError(f"{origin[ids[0]]}: {error.message}", error.hint) from error


def _folders(root: Path, file: Path, split: str) -> list[Path]:
    """Where the images of a split may lie, most specific first."""
    tail = file.stem.partition("_")[2]  # instances_train2017 -> train2017
    names = [name for name in (tail, *SPLIT_NAMES[split]) if name]
    folders = [file.parent] if file.name == _ROBOFLOW else []
    folders += [root / "images" / name for name in names]
    folders += [root / name / "images" for name in names] + [root / name for name in names]
    folders += [root / "images", root, file.parent / "images", file.parent]
    return list(dict.fromkeys(folder for folder in folders if folder.is_dir()))


def _read_split(
    annotations: _Annotations, folders: list[Path], classes: ClassMap, repairs: Repairs
) -> tuple[ImageRecord, ...]:
    file = annotations.file
    images: dict[int, dict[str, Any]] = {}
    places: dict[int, str] = {}
    for i, image in enumerate(annotations.images):
        where = f"{file}: images[{i}]"
        image_id = _unique_id(image, images, "image", where)
        images[image_id], places[image_id] = image, where
    boxes = _read_boxes(annotations, set(images), classes)
    records: list[ImageRecord] = []
    missing: list[str] = []
    for image_id, image in images.items():
        where = places[image_id]
        name = str(_get(image, "file_name", where))
        path = _find_image(name, folders)
        if path is None:
            missing.append(name)
            repairs.add(
                "image file is missing and was left out",
                "image files are missing and were left out",
                f"{where}: {name}",
            )
            continue
        record = _make_record(image, image_id, path, where, boxes.get(image_id, []), repairs)
        if record is not None:
            records.append(record)
    if missing and len(missing) == len(images):
        looked = ", ".join(map(str, folders))
        raise DataError(
            f"{file}: none of its {len(missing)} images was found, e.g. {missing[0]}",
            f"looked in {looked}",
        )
    return tuple(records)


def _find_image(name: str, folders: list[Path]) -> Path | None:
    """The image file of that name; the folder that had it moves to the front of the list."""
    name = name.replace("\\", "/")
    for i, folder in enumerate(folders):
        path = folder / name
        if path.is_file():
            if i:
                folders.insert(0, folders.pop(i))
            return path
    return None


@dataclass(frozen=True)
class _Box:
    place: str
    xywh: tuple[float, float, float, float]
    class_index: int
    is_crowd: bool
    area: float | None


def _read_boxes(
    annotations: _Annotations, image_ids: set[int], classes: ClassMap
) -> dict[int, list[_Box]]:
    """Boxes by image id, in file order."""
    file = annotations.file
    index_of_id = classes.index_of_id
    boxes: dict[int, list[_Box]] = {}
    seen: dict[int, None] = {}
    for i, entry in enumerate(annotations.annotations):
        where = f"{file}: annotations[{i}]"
        if "id" in entry:
            seen[_unique_id(entry, seen, "annotation", where)] = None
            where = f"{where} (id {entry['id']})"
        image_id = _integer(_get(entry, "image_id", where), "image_id", where)
        if image_id not in image_ids:
            raise DataError(f"{where}: image_id {image_id} is not among the images")
        category_id = _integer(_get(entry, "category_id", where), "category_id", where)
        if category_id not in index_of_id:
            known = ", ".join(map(str, classes.source_ids[:20]))
            raise DataError(
                f"{where}: category_id {category_id} is not among the categories", f"known: {known}"
            )
        boxes.setdefault(image_id, []).append(
            _Box(
                place=where,
                xywh=_read_bbox(_get(entry, "bbox", where), where),
                class_index=index_of_id[category_id],
                is_crowd=bool(entry.get("iscrowd", 0)),
                area=_read_area(entry.get("area"), where),
            )
        )
    return boxes


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _read_bbox(value: Any, where: str) -> tuple[float, float, float, float]:
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        raise DataError(f"{where}: bbox is {value!r:.80}, expected four numbers [x, y, w, h]")
    if not all(map(math.isfinite, value)):
        raise DataError(f"{where}: bbox is {value!r:.80}, its numbers must be finite")
    x, y, w, h = map(float, value)
    return x, y, w, h


def _read_area(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or not math.isfinite(value) or value < 0:
        raise DataError(f"{where}: area is {value!r:.60}, expected a number >= 0")
    return float(value)


def _make_record(
    image: Mapping[str, Any],
    image_id: int,
    path: Path,
    where: str,
    boxes: list[_Box],
    repairs: Repairs,
) -> ImageRecord | None:
    """The record of one image at its file's own size; None, with a note, if it cannot be used."""
    size = upright_size(path)
    if size is None:
        repairs.add(
            "file is not a readable image and was left out",
            "files are not readable images and were left out",
            str(path),
        )
        return None
    stated = size
    if image.get("width") is not None and image.get("height") is not None:
        width = _integer(image["width"], "width", where)
        height = _integer(image["height"], "height", where)
        if width < 1 or height < 1:
            raise DataError(f"{where}: size {width}x{height}, expected at least one pixel")
        stated = (width, height)
    scale_x, scale_y = size[0] / stated[0], size[1] / stated[1]
    if abs(scale_x / scale_y - 1) > _SAME_ASPECT:
        repairs.add(
            "image does not have the stated shape and was left out",
            "images do not have the stated shape and were left out",
            f"{where}: {stated[0]}x{stated[1]} stated, {path} is {size[0]}x{size[1]} upright",
        )
        return None
    if stated != size:
        repairs.add(
            "image has another size than stated; its boxes were scaled",
            "images have another size than stated; their boxes were scaled",
            f"{where}: {stated[0]}x{stated[1]} stated, {path} is {size[0]}x{size[1]} upright",
        )
    scale_area = scale_x * scale_y
    corners = [
        (x * scale_x, y * scale_y, (x + w) * scale_x, (y + h) * scale_y)
        for x, y, w, h in (box.xywh for box in boxes)
    ]
    return make_record(
        image_id,
        path,
        size,
        corners,
        [box.class_index for box in boxes],
        [box.place for box in boxes],
        repairs,
        is_crowd=[box.is_crowd for box in boxes],
        areas=[None if box.area is None else box.area * scale_area for box in boxes],
    )
