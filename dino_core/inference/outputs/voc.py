"""Pascal VOC annotations: one XML file per image or video frame."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import TYPE_CHECKING

from dino_core.files import atomic_file
from dino_core.inference.names import frame_stem

if TYPE_CHECKING:
    from dino_core.detections import ClassMap, Detection
    from dino_core.inference.prediction import Prediction


class VocWriter:
    """`voc/NAME.xml`, with a `score` per object."""

    def __init__(self, out: Path, classes: ClassMap) -> None:
        self._folder = out / "voc"

    def add(self, prediction: Prediction, stem: str) -> None:
        if prediction.error is not None:
            return
        name = Path(prediction.source).name or stem
        if prediction.frame is not None:
            name = frame_stem(Path(stem).name, prediction.frame)
        root = ElementTree.Element("annotation")
        _text(root, "filename", name)
        size = ElementTree.SubElement(root, "size")
        _text(size, "width", prediction.width)
        _text(size, "height", prediction.height)
        _text(size, "depth", 3)
        for found in prediction.rounded():
            _object(root, found)
        ElementTree.indent(root)
        with atomic_file(self._folder / f"{frame_stem(stem, prediction.frame)}.xml") as file:
            file.write(ElementTree.tostring(root, encoding="utf-8") + b"\n")

    def finish(self) -> None:
        """Each file is complete by itself."""

    def abort(self, *, keep: bool = False) -> None:
        """Each file is complete by itself."""


def _object(root: ElementTree.Element, found: Detection) -> None:
    node = ElementTree.SubElement(root, "object")
    _text(node, "name", found.label)
    _text(node, "difficult", 0)
    _text(node, "score", found.score)
    box = ElementTree.SubElement(node, "bndbox")
    # VOC counts pixels from 1 and includes both corners, so a box that ends at x2 = 50 has 50 as
    # its last pixel, and one that starts at x1 = 10 has 11 as its first.
    x1, y1, x2, y2 = (round(v) for v in found.box_xyxy_px)
    corners = (x1 + 1, y1 + 1, max(x2, x1 + 1), max(y2, y1 + 1))
    for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
        _text(box, key, value)


def _text(parent: ElementTree.Element, name: str, value: object) -> None:
    # XML has no way to write control characters and surrogates.
    text = re.sub("[\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]", _escaped, str(value))
    ElementTree.SubElement(parent, name).text = text


def _escaped(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
