"""COCO json, also as Roboflow lays it out, to and from the neutral form."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from dino_core.data.faults import FaultLog
from dino_core.data.formats.coco_boxes import with_boxes
from dino_core.data.formats.coco_files import CocoFiles
from dino_core.data.formats.coco_json import (
    CocoFile,
    get,
    integer,
    read_area,
    read_bbox,
)
from dino_core.data.formats.images import copy_images, unique_names
from dino_core.data.formats.labeled import LabeledImage, read_images
from dino_core.data.formats.layout import image_folders
from dino_core.data.formats.losses import lost_flags
from dino_core.data.formats.record import LabeledBox
from dino_core.data.formats.values import LARGEST, clean, is_true, whole_number
from dino_core.data.records import DatasetIndex, ImageRecord
from dino_core.detections import ClassMap
from dino_core.errors import DataError
from dino_core.files import write_text
from dino_core.limits import shown

_DIGITS = 5  # after the point, in written boxes
_KNOWN = {
    "images": {"id", "file_name", "width", "height"},
    "annotations": {"id", "image_id", "category_id", "bbox", "area", "iscrowd"},
    "categories": {"id", "name"},
}


def read_coco(found: CocoFiles) -> DatasetIndex:
    """Read a COCO data set.

    Crowds and images without boxes are kept. Boxes that reach outside their images are clipped;
    what cannot be used (files, entries, boxes, images) is left out and recorded in the faults.

    Raises:
        DataError: two splits or two categories contradict each other.
    """
    log = FaultLog()
    sources: dict[str, CocoFile] = {}
    for split, file in found.annotations.items():
        try:
            sources[split] = CocoFile.load(file, log, labeled=split != "test")
        except DataError as error:
            log.add_error("malformed-file", error)
            continue
        if sources[split].numbers:
            log.add("ids-are-words", str(file))
    classes = _join_classes(sources, log)
    splits: dict[str, tuple[ImageRecord, ...]] = {}
    for split, source in sources.items():
        folders = image_folders(found.root, source.file, split)
        if records := _read_split(source, folders, classes, log):
            splits[split] = records
    unread = _unread(sources.values())
    named = frozenset(found.annotations)
    return DatasetIndex(
        found.root, "coco", classes, splits, log.faults(), unread, named_splits=named
    )


def _unread(sets: Iterable[CocoFile]) -> tuple[str, ...]:
    """What the files hold beyond the neutral form, e.g. outlines; converters report it."""
    counts: Counter[tuple[str, str]] = Counter()
    for source in sets:
        for kind, known in _KNOWN.items():
            for entry in source.objects(kind):
                counts.update((kind, k) for k, v in entry.items() if k not in known and v)
    return tuple(
        f"{count} {kind} have a '{key}', which is not kept" for (kind, key), count in counts.items()
    )


def _join_classes(sources: Mapping[str, CocoFile], log: FaultLog) -> ClassMap:
    """The categories of all splits, by id."""
    names: dict[int, str] = {}
    origin: dict[int, Path] = {}
    for source in sources.values():
        for category_id, name, where in _categories(source, log):
            if names.get(category_id, name) != name:
                raise DataError(
                    f"{where}: category {category_id} is '{name}' here and "
                    f"'{names[category_id]}' in {origin[category_id]}",
                    "all splits must have the same categories",
                )
            names[category_id], origin[category_id] = name, source.file
    for category_id in _grouping(names, sources.values()):
        place = f"{origin[category_id]}: category {category_id} '{names.pop(category_id)}'"
        log.add("category-for-grouping", place)
    ids = sorted(names)
    try:
        return ClassMap(tuple(names[i] for i in ids), tuple(ids))
    except DataError as error:
        raise DataError(f"{origin[ids[0]]}: {error.message}", error.hint) from error


def _categories(source: CocoFile, log: FaultLog) -> Iterator[tuple[int, str, str]]:
    """Id, name and place of each category of one file.

    An id with two names is left out with both: its labels may be of either class.
    """
    found: dict[int, tuple[str, str]] = {}
    ambiguous: set[int] = set()
    for where, category in source.entries("categories"):
        try:
            category_id = integer(get(category, "id", where), "id", where)
            name = clean(str(get(category, "name", where))).strip()
        except DataError as error:
            log.add_error("malformed-class", error)
            continue
        other, place = found.setdefault(category_id, (name, where))
        if other != name:
            ambiguous.add(category_id)
            place = place.rpartition(": ")[2]
            log.add("malformed-class", f"{where}: the id {category_id} is that of {place} too")
    for category_id, (name, where) in found.items():
        if category_id in ambiguous:
            continue
        if not name:
            name = f"class_{category_id}"
            log.add("class-unnamed", f"{where}: it is called {name}")
        yield category_id, name, where
    if not source.lists["categories"]:
        log.add("malformed-class", f"{source.file}: 'categories' is empty")


def _grouping(names: Mapping[int, str], sources: Iterable[CocoFile]) -> list[int]:
    """Categories that only group others, as Roboflow adds one, often with a class's own name."""
    used: set[str] = set()
    parents: set[str] = set()
    for source in sources:
        used.update(str(entry.get("category_id")) for entry in source.objects("annotations"))
        parents.update(str(entry.get("supercategory")) for entry in source.objects("categories"))
    left = dict(names)
    for category_id in sorted(names):
        name = names[category_id]
        twin = list(left.values()).count(name) > 1
        is_parent = name in parents and category_id == 0
        if str(category_id) not in used and (is_parent or twin) and len(left) > 1:
            del left[category_id]
    return sorted(names.keys() - left.keys())


def _read_split(
    source: CocoFile, folders: list[Path], classes: ClassMap, log: FaultLog
) -> tuple[ImageRecord, ...]:
    images = _read_images(source, log)
    lost: Counter[int] = Counter()
    boxes = _read_boxes(source, images.keys(), classes, lost, log)
    counted = (replace(image, lost=lost[i]) for i, image in images.items())
    found = with_boxes(counted, boxes, source.file, log)
    return read_images(found, folders, source.file, log)


def _read_images(source: CocoFile, log: FaultLog) -> dict[int, LabeledImage]:
    """The images of a file by id, without their boxes.

    Images that share an id are left out: an annotation of that id may belong to any of them.
    """
    images: dict[int, LabeledImage] = {}
    ambiguous: set[int] = set()
    for where, entry in source.entries("images"):
        try:
            image_id = source.image_id(entry, "id", where)
            key = "file_name" if "file_name" in entry or "coco_url" not in entry else "coco_url"
            name = clean(str(get(entry, key, where)))  # LVIS has addresses only
        except DataError as error:
            log.add_error("malformed-image-entry", error)
            continue
        if image_id in images:
            first = images[image_id].place.rpartition(": ")[2]
            log.add("duplicate-id", f"{where}: the image id {image_id} is that of {first} too")
            ambiguous.add(image_id)
            continue
        try:
            stated_wh = _stated_size(entry, where)
        except DataError as error:
            log.add_error("malformed-size", error)
            stated_wh = None
        images[image_id] = LabeledImage(image_id, (name,), where, stated_wh, ())
    return {i: image for i, image in images.items() if i not in ambiguous}


def _stated_size(image: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    if image.get("width") is None or image.get("height") is None:
        return None
    width = integer(image["width"], "width", where)
    height = integer(image["height"], "height", where)
    if min(width, height) < 1 or max(width, height) > LARGEST:
        raise DataError(f"{where}: size {width}x{height}, expected at least one pixel")
    return (width, height)


def _read_boxes(
    source: CocoFile, image_ids: Set[int], classes: ClassMap, lost: Counter[int], log: FaultLog
) -> dict[int, list[LabeledBox]]:
    """Boxes by image id, in file order; those of images that are not listed are left out.

    `lost` counts the annotations of each image that cannot be used.
    """
    index_of_id = classes.index_of_id
    known = ", ".join(map(str, classes.source_ids[:20]))
    boxes: dict[int, list[LabeledBox]] = {}
    seen: set[str] = set()
    for where, entry in source.entries("annotations"):
        image_id: int | None = None
        try:
            if "id" in entry:
                annotation_id = _annotation_id(entry["id"])
                where = f"{where} (id {annotation_id})"
                if annotation_id in seen:
                    log.add("duplicate-annotation-id", where)
                seen.add(annotation_id)
            image_id = source.image_id(entry, "image_id", where)
            if image_id not in image_ids:
                place = f"{where}: image_id {shown(entry['image_id'])} is not among the images"
                log.add("label-without-image", place)
                continue
            category_id = integer(get(entry, "category_id", where), "category_id", where)
            if category_id not in index_of_id:
                place = f"{where}: category_id {category_id} is not among the categories"
                log.add("unknown-class", f"{place} ({known})")
                lost[image_id] += 1
                continue
            box = _read_box(entry, where, index_of_id[category_id])
        except DataError as error:
            log.add_error("malformed-label", error)
            if image_id is not None:
                lost[image_id] += 1
            continue
        boxes.setdefault(image_id, []).append(box)
    return boxes


def _annotation_id(value: object) -> str:
    """The id of an annotation, for places and to find twins: a number or, from some tools, text."""
    found = whole_number(value)
    return clean(shown(value).strip("'")) if found is None else str(found)


def _read_box(entry: Mapping[str, Any], where: str, class_index: int) -> LabeledBox:
    x, y, w, h = read_bbox(entry, where)
    return LabeledBox(
        place=where,
        xyxy=(x, y, x + w, y + h),
        class_index=class_index,
        is_crowd=is_true(entry.get("iscrowd", 0)),
        area=read_area(entry.get("area"), where),
    )


def write_coco(index: DatasetIndex, out_dir: Path) -> list[str]:
    """Write annotations/instances_SPLIT.json and images/SPLIT/ below `out_dir`.

    Returns: what could not be kept, one sentence each.
    Raises: OSError if the folder cannot be written.
    """
    lost = [*index.unread, *lost_flags(index, "COCO")]
    for split, records in index.splits.items():
        names = unique_names(records)
        copy_images(records, names, out_dir / "images" / split, lost)
        text = json.dumps(_as_coco(index.classes, records, names), ensure_ascii=False)
        write_text(out_dir / "annotations" / f"instances_{split}.json", text)
    return lost


def _as_coco(
    classes: ClassMap, records: Sequence[ImageRecord], names: Sequence[str]
) -> dict[str, Any]:
    images = [
        {"id": r.image_id, "file_name": name, "width": r.width, "height": r.height}
        for r, name in zip(records, names, strict=True)
    ]
    annotations: list[dict[str, Any]] = []
    for record in records:
        rows = zip(
            record.boxes_xyxy_px.tolist(),
            record.class_indices.tolist(),
            record.is_crowd.tolist(),
            record.areas.tolist(),
            strict=True,
        )
        for (x1, y1, x2, y2), class_index, is_crowd, area in rows:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": classes.source_ids[class_index],
                    "bbox": [round(v, _DIGITS) for v in (x1, y1, x2 - x1, y2 - y1)],
                    "area": round(area, _DIGITS),
                    "iscrowd": int(is_crowd),
                }
            )
    categories = [
        {"id": source_id, "name": name}
        for name, source_id in zip(classes.names, classes.source_ids, strict=True)
        if name
    ]
    return {"images": images, "annotations": annotations, "categories": categories}
