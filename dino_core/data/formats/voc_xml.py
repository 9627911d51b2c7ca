"""One Pascal VOC annotation file: its elements, each checked as it is read, with its line.

Expat parses the file, as it does for xml.etree, but here line numbers are kept, and document types
are refused, since their entities can read other files or grow without bound.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from dino_core.data.faults import FaultLog
from dino_core.data.formats.values import MOST_LABEL_BYTES, is_true, listed, number, read_bytes
from dino_core.errors import DataError

ROOT = "annotation"
FLAGS = ("truncated", "difficult", "occluded")
VOC_ITSELF = r"The VOC\d{4} Database|pixels counted from 1"
"""In the <source> of a file: its corners are counted from 1, decimals or not."""
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_KNOWN = {"name", "pose", "bndbox", *FLAGS}
_NO_POSE = {"", "unspecified"}


@dataclass
class Element:
    """An XML element: its tag, first line, text and children."""

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def child(self, tag: str) -> Element | None:
        """The first child of that tag."""
        return next((child for child in self.children if child.tag == tag), None)

    def text_of(self, tag: str) -> str:
        """The text of the first child of that tag; empty where there is none."""
        child = self.child(tag)
        return "" if child is None else child.text.strip()


@dataclass(frozen=True)
class VocObject:
    """One object.

    Attributes:
        place: File and line.
        name: Its class.
        corners: xmin, ymin, xmax, ymax as written: see `VocAnnotation.from_zero`; or those of
            the box around a polygon.
        is_outline: Whether a polygon was made a box.
        flags: Those of `FLAGS` that are set.
        unread: Tags of what else it holds.
    """

    place: str
    name: str
    corners: tuple[float, float, float, float]
    flags: frozenset[str]
    unread: tuple[str, ...]
    is_outline: bool = False


@dataclass(frozen=True)
class VocAnnotation:
    """What one file states.

    Attributes:
        file: The XML file.
        filename: The image's name as stated, without folders; may be empty.
        stated_wh: Width and height as stated; None where they are missing, 0 or malformed.
        objects: Those that can be read, in file order.
        lost: How many objects could not be read.
        from_zero: Whether corners are counted from the edge of the image, as CVAT and labelme
            write them. VOC counts pixels from 1 and includes the last one.
    """

    file: Path
    filename: str
    stated_wh: tuple[int, int] | None
    objects: tuple[VocObject, ...]
    lost: int = 0
    from_zero: bool = False


def read_annotation(file: Path, log: FaultLog) -> VocAnnotation:
    """Read one annotation file; objects that cannot be read are left out.

    Args:
        file: The XML file.
        log: Records malformed objects and a malformed size, each with its line.

    Raises:
        DataError: the file cannot be read or is no VOC annotation; the message names the line.
    """
    root = _parse(file)
    if root.tag != ROOT:
        raise DataError(
            f"{file} line {root.line}: the root element is <{root.tag:.40}>, expected <{ROOT}>",
            "every XML file there must be a Pascal VOC annotation",
        )
    filename = root.text_of("filename").replace("\\", "/").rpartition("/")[2]
    try:
        stated_wh = _size(root, file)
    except DataError as error:
        log.add_error("malformed-size", error)
        stated_wh = None
    objects = []
    for child in root.children:
        if child.tag != "object":
            continue
        try:
            objects.append(_object(child, file))
        except DataError as error:
            log.add_error("malformed-label", error)
    count = sum(child.tag == "object" for child in root.children)
    lost = count - len(objects)
    from_zero = bool(objects) and _counts_from_zero(root)
    return VocAnnotation(file, filename, stated_wh, tuple(objects), lost, from_zero)


def _counts_from_zero(root: Element) -> bool:
    """Whether a file counts from the edge: all corners have decimals, and it does not state 1.

    A few files of VOC2012 itself have decimals too, and those that this package writes.
    """
    source = root.child("source")
    if source is not None and any(re.search(VOC_ITSELF, child.text) for child in source.children):
        return False
    boxes = [found.child("bndbox") for found in root.children if found.tag == "object"]
    corners = [box.text_of(tag) for box in boxes if box is not None for tag in _CORNERS]
    return bool(corners) and all("." in text for text in corners)


def _parse(file: Path) -> Element:
    parser = expat.ParserCreate()
    parser.buffer_text = True
    document = Element("", 0)
    open_elements = [document]

    def start(tag: str, _attributes: dict[str, str]) -> None:
        element = Element(tag, parser.CurrentLineNumber)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(_tag: str) -> None:
        open_elements.pop()

    def text(data: str) -> None:
        open_elements[-1].text += data

    def document_type(name: str, _system: str | None, _public: str | None, _inner: bool) -> None:
        raise DataError(
            f"{file} line {parser.CurrentLineNumber}: a document type (<!DOCTYPE {name:.40}), "
            "which could declare entities, is refused",
            "remove the <!DOCTYPE ...> from the file",
        )

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = document_type
    try:
        parser.Parse(read_bytes(file, MOST_LABEL_BYTES), True)
    except expat.ExpatError as error:
        raise DataError(
            f"{file} line {error.lineno}: not valid XML ({expat.ErrorString(error.code)})",
            "the file may be truncated; write or download it again",
        ) from error
    except (ValueError, LookupError) as error:  # Expat does not know the file's encoding.
        raise DataError(f"{file} line 1: not readable ({error})", "save it as UTF-8") from error
    return document.children[0]


def _size(root: Element, file: Path) -> tuple[int, int] | None:
    size = root.child("size")
    if size is None:
        return None
    sides = []
    for tag in ("width", "height"):
        text = size.text_of(tag)
        side = number(text or "0")
        if side is None:
            raise DataError(
                f"{file} line {size.line}: {tag} is '{text:.40}', expected a number of pixels"
            )
        sides.append(int(side))
    return (sides[0], sides[1]) if min(sides) > 0 else None


def _object(element: Element, file: Path) -> VocObject:
    place = f"{file} line {element.line}"
    name = element.text_of("name")
    if not name:
        raise DataError(f"{place}: the object has no <name>", "every object needs its class")
    box, polygon = element.child("bndbox"), element.child("polygon")
    if box is not None:
        x1, y1, x2, y2 = (_corner(box, tag, file) for tag in _CORNERS)
    elif polygon is not None:
        x1, y1, x2, y2 = _around(polygon, file)
    else:
        found = listed(child.tag for child in element.children)
        raise DataError(
            f"{place}: the object '{name:.40}' has no <bndbox>, found {found}",
            "every object needs <bndbox> with <xmin>, <ymin>, <xmax> and <ymax>",
        )
    flags = frozenset(flag for flag in FLAGS if is_true(element.text_of(flag)))
    unread = {child.tag for child in element.children if child.tag not in _KNOWN}
    unread -= {"polygon"} if box is None else set()
    if element.text_of("pose").lower() not in _NO_POSE:
        unread.add("pose")
    return VocObject(place, name, (x1, y1, x2, y2), flags, tuple(sorted(unread)), box is None)


def _around(polygon: Element, file: Path) -> tuple[float, float, float, float]:
    """The corners of the box around <x1>, <y1>, <x2>, <y2> and so on, or <pt> with <x> and <y>."""
    points = [child for child in polygon.children if child.tag == "pt"]
    coordinates = [each for point in points or [polygon] for each in point.children]
    ends: dict[str, list[float]] = {"x": [], "y": []}
    for each in coordinates:
        if re.fullmatch(r"[xy]\d*", each.tag):
            ends[each.tag[0]].append(_pixels(each, file))
    xs, ys = ends["x"], ends["y"]
    if len(xs) != len(ys) or len(xs) < 3:
        raise DataError(
            f"{file} line {polygon.line}: <polygon> has {len(xs)} x and {len(ys)} y",
            "a polygon has at least three points",
        )
    return min(xs), min(ys), max(xs), max(ys)


def _corner(box: Element, tag: str, file: Path) -> float:
    corner = box.child(tag)
    if corner is None:
        found = ", ".join(child.tag for child in box.children) or "nothing"
        raise DataError(
            f"{file} line {box.line}: <bndbox> has no <{tag}>, found {found:.80}",
            f"it needs {', '.join(_CORNERS)}",
        )
    return _pixels(corner, file)


def _pixels(element: Element, file: Path) -> float:
    text = element.text.strip()
    value = number(text)
    if value is None:
        raise DataError(
            f"{file} line {element.line}: {element.tag} is '{text:.40}', expected a number"
        )
    return value
