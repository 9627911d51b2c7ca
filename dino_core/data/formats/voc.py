"""Pascal VOC XML to and from the neutral form.

VOC counts pixels from 1 and includes the last one ("The top-left pixel in the image has
coordinates (1,1)", VOC2012 devkit; its VOCevaldet.m takes xmax - xmin + 1 as width). In the neutral
form, where 0 is the edge of the image, a box therefore covers xmin - 1 to xmax.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path

from dino_core.data.faults import FaultLog
from dino_core.data.formats.images import (
    copy_images,
    number_text,
    unique_names,
    with_suffixes,
)
from dino_core.data.formats.labeled import LabeledImage, read_images
from dino_core.data.formats.layout import image_folders
from dino_core.data.formats.losses import (
    lost_areas,
    lost_class_ids,
    lost_crowds,
    lost_image_ids,
    require_boxes,
)
from dino_core.data.formats.record import ROUNDING_PX, LabeledBox
from dino_core.data.formats.values import in_class_order
from dino_core.data.formats.voc_files import VocFiles
from dino_core.data.formats.voc_xml import (
    FLAGS,
    ROOT,
    VocAnnotation,
    VocObject,
    read_annotation,
)
from dino_core.data.records import DatasetIndex, ImageRecord
from dino_core.detections import ClassMap
from dino_core.errors import DataError
from dino_core.files import write_text


def read_voc(files: VocFiles) -> DatasetIndex:
    """Read a Pascal VOC data set.

    Classes are the names found, sorted; none where no object can be read. Objects marked difficult,
    truncated or occluded keep these flags. Images are numbered from 1 in the order of their list,
    else of their files. A file describes the image of its own name, else the one that it states.
    What cannot be used (files, objects, sizes, images) is left out and recorded in the faults.
    """
    log = FaultLog(files.faults)
    annotations = {split: _read_files(members, log) for split, members in files.splits.items()}
    objects = [
        found for members in annotations.values() for each in members for found in each.objects
    ]
    names = in_class_order({found.name for found in objects})
    index_of = {name: i for i, name in enumerate(names)}
    splits: dict[str, tuple[ImageRecord, ...]] = {}
    for split, names_of_images in files.unlabeled.items():
        unlabeled = [
            LabeledImage(i, with_suffixes(name), f"{split}: {name}", None, ())
            for i, name in enumerate(names_of_images, start=1)
        ]
        folders = image_folders(files.root, files.root / "x", split)
        if records := read_images(unlabeled, folders, files.root, log):
            splits[split] = records
    for split, members in annotations.items():
        if not members:
            continue
        images = [_labeled(i, each, index_of, log) for i, each in enumerate(members, start=1)]
        folders = image_folders(files.root, members[0].file, split)
        if records := read_images(images, folders, members[0].file.parent, log):
            splits[split] = records
    classes = ClassMap.from_names(names)
    return DatasetIndex(
        files.root,
        "voc",
        classes,
        splits,
        log.faults(),
        _unread(objects),
        named_splits=files.named,
    )


def _read_files(files: Iterable[Path], log: FaultLog) -> list[VocAnnotation]:
    """The annotation files that can be read."""
    annotations = []
    for file in files:
        try:
            annotations.append(read_annotation(file, log))
        except DataError as error:
            log.add_error("malformed-file", error)
    return annotations


def _labeled(
    image_id: int, annotation: VocAnnotation, index_of: Mapping[str, int], log: FaultLog
) -> LabeledImage:
    stem, stated = annotation.file.stem, annotation.filename
    names = with_suffixes(stem)
    if stated:
        names.insert(0 if Path(stated).stem == stem else len(names), stated)
    boxes = [
        LabeledBox(found.place, _corners(found, annotation.from_zero, log), index_of[found.name],
                   flags=found.flags)
        for found in annotation.objects
    ]  # fmt: skip
    if annotation.from_zero:
        log.add("corners-from-zero", str(annotation.file))
    place, lost = str(annotation.file), annotation.lost
    return LabeledImage(image_id, names, place, annotation.stated_wh, boxes, lost=lost)


def _corners(found: VocObject, from_zero: bool, log: FaultLog) -> tuple[float, float, float, float]:
    """Corners in pixels from the edge of the image; a box from 0 is taken to start there."""
    x1, y1, x2, y2 = found.corners
    if found.is_outline:
        log.add("outline-label", found.place)
    if from_zero:
        return x1, y1, x2, y2
    if 0 <= min(x1, y1) < 1 - ROUNDING_PX:
        log.add("box-from-zero", found.place)
        x1, y1 = (1 if 0 <= v < 1 else v for v in (x1, y1))
    return (x1 - 1, y1 - 1, x2, y2)


def _unread(objects: Iterable[VocObject]) -> tuple[str, ...]:
    """What objects hold that the neutral form has no place for, e.g. parts; for converters."""
    counts = Counter(tag for found in objects for tag in found.unread)
    return tuple(f"{n} objects have a '{tag}', which is not kept" for tag, n in counts.items())


def write_voc(index: DatasetIndex, out_dir: Path) -> list[str]:
    """Write Annotations/, JPEGImages/ and ImageSets/Main/SPLIT.txt below `out_dir`.

    Corners are written in full, although other tools often round them to whole pixels.

    Returns:
        What could not be kept, one sentence each.

    Raises:
        OSError: the folder cannot be written.
        DataError: there is no box, so that no class is named.
    """
    require_boxes(index, "VOC")
    lost = [
        *index.unread,
        *lost_crowds(index, "VOC"),
        *lost_class_ids(index, "VOC"),
        *lost_image_ids(index, "VOC"),
        *lost_areas(index),
    ]
    records = index.records
    names = unique_names(records)
    pairs = zip(records, names, strict=True)
    copy_images(records, names, out_dir / "JPEGImages", lost)
    for split, members in index.splits.items():
        stems = []
        for record, name in islice(pairs, len(members)):
            stems.append(Path(name).stem)
            text = _annotation_text(record, name, index.classes.names)
            write_text(out_dir / "Annotations" / f"{stems[-1]}.xml", text)
        listed = "".join(f"{stem}\n" for stem in stems)
        write_text(out_dir / "ImageSets" / "Main" / f"{split}.txt", listed)
    return lost


def _annotation_text(record: ImageRecord, name: str, classes: Sequence[str]) -> str:
    root = ElementTree.Element(ROOT)
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", name)
    source = ElementTree.SubElement(root, "source")
    _add(source, "annotation", "dino, pixels counted from 1")  # the reader looks for these words
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", record.width), ("height", record.height), ("depth", 3)):
        _add(size, tag, value)
    _add(root, "segmented", 0)
    for i, box in enumerate(record.boxes_xyxy_px):
        if record.is_crowd[i]:
            continue
        node = ElementTree.SubElement(root, "object")
        _add(node, "name", classes[record.class_indices[i]])
        _add(node, "pose", "Unspecified")
        for flag in FLAGS:
            if flag in record.flags or flag != "occluded":
                _add(node, flag, int(flag in record.flags and record.flags[flag][i]))
        x1, y1, x2, y2 = map(number_text, box)
        bndbox = ElementTree.SubElement(node, "bndbox")
        corners = {"xmin": Decimal(x1) + 1, "ymin": Decimal(y1) + 1, "xmax": x2, "ymax": y2}
        for tag, corner in corners.items():
            _add(bndbox, tag, corner)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(parent: ElementTree.Element, tag: str, value: object) -> None:
    ElementTree.SubElement(parent, tag).text = str(value)
