"""COCO json, also as Roboflow lays it out, to and from the neutral form."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dino_core.data.formats.coco_json import (
    CocoFile,
    get,
    integer,
    read_area,
    read_bbox,
    require_new,
)
from dino_core.data.formats.images import (
    copy_images,
    unique_names,
    writing_failed,
)
from dino_core.data.formats.labelled import LabelledBox, LabelledImage, read_images
from dino_core.data.formats.layout import (
    COCO_LAYOUT,
    find_coco,
    image_folders,
    root_of,
)
from dino_core.data.formats.losses import lost_flags
from dino_core.data.formats.repairs import Repairs
from dino_core.data.records import DatasetIndex, ImageRecord
from dino_core.detections import ClassMap
from dino_core.errors import DataError
from dino_core.files import write_text

_DIGITS = 5  # after the point, in written boxes
_KNOWN = {
    "images": {"id", "file_name", "width", "height"},
    "annotations": {"id", "image_id", "category_id", "bbox", "area", "iscrowd"},
    "categories": {"id", "name"},
}


def read_coco(path: Path) -> DatasetIndex:
    """Read a COCO data set: a folder (see `COCO_LAYOUT`) or one annotation file.

    Crowds and images without boxes are kept. Boxes outside their images are clipped, boxes without
    area, images without a readable file and images of another size than stated are left out; the
    index's warnings tell.

    Raises:
        DataError: a file is missing or malformed, naming the entry.
    """
    files = find_coco(path)
    if not files:
        raise DataError(
            f"{path}: no COCO annotations found", f"expected {COCO_LAYOUT}, or a json file"
        )
    repairs = Repairs()
    sets = {split: CocoFile.load(file, split != "test") for split, file in files.items()}
    for source in sets.values():
        if source.numbers:
            repairs.add(
                "file has words as ids of its images, which were numbered instead",
                "files have words as ids of their images, which were numbered instead",
                str(source.file),
            )
    classes = _join_classes(sets, repairs)
    root = path if path.is_dir() else root_of(path)
    splits = {
        split: _read_split(source, image_folders(root, source.file, split), classes, repairs)
        for split, source in sets.items()
    }
    return DatasetIndex(root, "coco", classes, splits, repairs.sentences(), _unread(sets.values()))


def _unread(sets: Iterable[CocoFile]) -> tuple[str, ...]:
    """What the files hold beyond the neutral form, e.g. outlines: for converters to tell."""
    counts: Counter[tuple[str, str]] = Counter()
    for source in sets:
        for kind, known in _KNOWN.items():
            for entry in getattr(source, kind):
                counts.update((kind, k) for k, v in entry.items() if k not in known and v)
    return tuple(
        f"{count} {kind} have a '{key}', which is not kept" for (kind, key), count in counts.items()
    )


def _join_classes(sets: Mapping[str, CocoFile], repairs: Repairs) -> ClassMap:
    """The categories of all splits, by id.

    Roboflow adds a parent category that no box uses, often with a class's own name; it is left out.
    """
    names: dict[int, str] = {}
    origin: dict[int, Path] = {}
    used: Counter[Any] = Counter()
    parents: set[str] = set()
    for source in sets.values():
        file = source.file
        here: dict[int, str] = {}
        used.update(str(entry.get("category_id")) for entry in source.annotations)
        for i, category in enumerate(source.categories):
            where = f"{file}: categories[{i}]"
            category_id = integer(get(category, "id", where), "id", where)
            require_new(category_id, here, "category", where)
            name = str(get(category, "name", where)).strip()
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


def _read_split(
    source: CocoFile, folders: list[Path], classes: ClassMap, repairs: Repairs
) -> tuple[ImageRecord, ...]:
    file = source.file
    images: dict[int, dict[str, Any]] = {}
    places: dict[int, str] = {}
    for i, image in enumerate(source.images):
        where = f"{file}: images[{i}]"
        image_id = source.image_id(image, "id", where)
        require_new(image_id, images, "image", where)
        images[image_id], places[image_id] = image, where
    boxes = _read_boxes(source, set(images), classes, repairs)
    found = (
        LabelledImage(
            image_id,
            (str(get(image, "file_name", places[image_id])),),
            places[image_id],
            _stated_size(image, places[image_id]),
            boxes.get(image_id, ()),
        )
        for image_id, image in images.items()
    )
    return read_images(found, folders, file, repairs)


def _stated_size(image: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    if image.get("width") is None or image.get("height") is None:
        return None
    width = integer(image["width"], "width", where)
    height = integer(image["height"], "height", where)
    if width < 1 or height < 1:
        raise DataError(f"{where}: size {width}x{height}, expected at least one pixel")
    return (width, height)


def _read_boxes(
    source: CocoFile, image_ids: set[int], classes: ClassMap, repairs: Repairs
) -> dict[int, list[LabelledBox]]:
    """Boxes by image id, in file order; those of images that are not listed are left out."""
    file = source.file
    index_of_id = classes.index_of_id
    boxes: dict[int, list[LabelledBox]] = {}
    orphan = ""
    seen: set[int] = set()
    for i, entry in enumerate(source.annotations):
        where = f"{file}: annotations[{i}]"
        if "id" in entry:
            annotation_id = integer(entry["id"], "id", where)
            where = f"{where} (id {annotation_id})"
            if annotation_id in seen:
                repairs.add(
                    "annotation has an id that another one has; it was read all the same",
                    "annotations have ids that others have; they were read all the same",
                    where,
                )
            seen.add(annotation_id)
        image_id = source.image_id(entry, "image_id", where)
        if image_id not in image_ids:
            orphan = f"{where}: image_id {entry['image_id']} is not among the images"
            repairs.add(
                "annotation belongs to no image of its file and was left out",
                "annotations belong to no image of their file and were left out",
                orphan,
            )
            continue
        category_id = integer(get(entry, "category_id", where), "category_id", where)
        if category_id not in index_of_id:
            known = ", ".join(map(str, classes.source_ids[:20]))
            raise DataError(
                f"{where}: category_id {category_id} is not among the categories", f"known: {known}"
            )
        x, y, w, h = read_bbox(entry, where)
        boxes.setdefault(image_id, []).append(
            LabelledBox(
                place=where,
                xyxy=(x, y, x + w, y + h),
                class_index=index_of_id[category_id],
                is_crowd=bool(entry.get("iscrowd", 0)),
                area=read_area(entry.get("area"), where),
            )
        )
    if orphan and not boxes:
        raise DataError(orphan, "none of the file's annotations belongs to one of its images")
    return boxes


def write_coco(index: DatasetIndex, out_dir: Path) -> list[str]:
    """Write annotations/instances_SPLIT.json and images/SPLIT/ below `out_dir`.

    Returns: what could not be kept, one sentence each.
    Raises: DataError if the folder cannot be written.
    """
    lost = [*index.unread, *lost_flags(index, "COCO")]
    try:
        for split, records in index.splits.items():
            names = unique_names(records)
            copy_images(records, names, out_dir / "images" / split, lost)
            text = json.dumps(_as_coco(index.classes, records, names), ensure_ascii=False)
            write_text(out_dir / "annotations" / f"instances_{split}.json", text)
    except OSError as error:
        raise writing_failed(out_dir, error) from error
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
