"""What a check of a data set tells: kinds of fault, how grave each is, and where it was seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Kind:
    """One kind of fault, in words for one and for several, and what to do about it.

    An error loses data or makes scores meaningless, a warning is most likely a mistake, a note is
    worth knowing and may be meant so.
    """

    severity: Severity
    one: str
    many: str
    hint: str


KINDS: Mapping[str, Kind] = {
    "unreadable-image": Kind(
        "error",
        "file is not a readable image",
        "files are not readable images",
        "replace the file, or remove it and its labels",
    ),
    "truncated-image": Kind(
        "error", "image ends early", "images end early", "copy or download the file again"
    ),
    "missing-image": Kind(
        "error",
        "labelled image file is missing",
        "labelled image files are missing",
        "add the file or remove its labels",
    ),
    "wrong-shape": Kind(
        "error",
        "image does not have the shape its labels state and is left out",
        "images do not have the shape their labels state and are left out",
        "label it again: it was cropped, turned or replaced since",
    ),
    "duplicate-across-splits": Kind(
        "error",
        "image is in more than one split",
        "images are in more than one split",
        "keep it in one split: a score on training images says nothing",
    ),
    "image-listed-twice": Kind(
        "error",
        "image file is listed more than once",
        "image files are listed more than once",
        "keep one entry with all its boxes",
    ),
    "duplicate-id": Kind(
        "error",
        "image id is used more than once in its split",
        "image ids are used more than once in their split",
        "give every image its own id",
    ),
    "no-boxes": Kind(
        "error",
        "split has no boxes",
        "splits have no boxes",
        "label its images: there is nothing to learn from or measure by",
    ),
    "near-duplicate-across-splits": Kind(
        "warning",
        "image nearly equals one of another split",
        "images nearly equal one of another split",
        "keep such images in one split: scores come out too good otherwise",
    ),
    "duplicate-image": Kind(
        "warning",
        "image is there more than once in its split",
        "images are there more than once in their split",
        "keep one copy, with all its boxes",
    ),
    "exif-rotated": Kind(
        "warning",
        "image is turned by its EXIF tag",
        "images are turned by their EXIF tags",
        "see whether its boxes fit the upright image, else label it again",
    ),
    "missing-label": Kind(
        "warning",
        "image has no label file",
        "images have no label file",
        "label it, or write an empty label file to say that nothing is on it",
    ),
    "label-without-image": Kind(
        "warning",
        "label belongs to no image",
        "labels belong to no image",
        "add the image or remove the label",
    ),
    "duplicate-annotation-id": Kind(
        "warning",
        "annotation has an id that another one has",
        "annotations have ids that others have",
        "number them anew: tools that go by the id keep only one",
    ),
    "box-outside": Kind(
        "warning",
        "box reaches outside its image and is clipped",
        "boxes reach outside their images and are clipped",
        "draw it again; far outside, it is of another size of the image",
    ),
    "box-degenerate": Kind(
        "warning",
        "box has no area inside its image and is left out",
        "boxes have no area inside their images and are left out",
        "remove it or draw it again",
    ),
    "box-duplicate": Kind(
        "warning",
        "box is there twice",
        "boxes are there twice",
        "remove one: a model learns to report each object once",
    ),
    "box-two-classes": Kind(
        "warning",
        "box has two classes",
        "boxes have two classes",
        "keep the class that is right",
    ),
    "box-whole-image": Kind(
        "warning",
        "box covers its whole image",
        "boxes cover their whole image",
        "draw it around the object, if that is smaller",
    ),
    "class-without-boxes": Kind(
        "warning",
        "class has no boxes to learn from",
        "classes have no boxes to learn from",
        "label some, or remove the class",
    ),
    "near-duplicate-image": Kind(
        "note",
        "image nearly equals another of its split",
        "images nearly equal another of their split",
        "frames of a video add little: keep all of one scene in one split",
    ),
    "image-without-boxes": Kind(
        "note",
        "image has no boxes",
        "images have no boxes",
        "keep it if nothing to find is on it, else label it",
    ),
    "image-not-listed": Kind(
        "note",
        "image lies among the others but is in no split",
        "images lie among the others but are in no split",
        "list it with its boxes, or remove it, if it was forgotten",
    ),
    "box-tiny": Kind(
        "note",
        "box is tiny at the model's input size",
        "boxes are tiny at the model's input size",
        "if they matter, give a larger --image-size than `dino train` chooses",
    ),
    "class-imbalance": Kind(
        "note",
        "class is rare",
        "classes are rare",
        "label more of it: rare classes score low",
    ),
    "other-size": Kind(
        "note",
        "image has another size than stated; its boxes are scaled",
        "images have another size than stated; their boxes are scaled",
        "nothing to do if the files were resized after they were labelled",
    ),
    "outline-label": Kind(
        "note", "outline became its box", "outlines became their boxes", "nothing to do"
    ),
    "reading": Kind("note", "remark of the reader", "remarks of the reader", ""),
}


@dataclass(frozen=True)
class MarkedBox:
    """A box to show: corners in pixels of the upright image, and its class."""

    xyxy_px: tuple[float, float, float, float]
    label: str


@dataclass(frozen=True)
class Example:
    """One place where a fault was seen.

    Attributes:
        detail: Where and what, in words.
        paths: The image, or all images of a group of equal ones; empty where none is known.
        boxes: Boxes at fault, on the first of the images.
    """

    detail: str
    paths: tuple[Path, ...] = ()
    boxes: tuple[MarkedBox, ...] = ()


@dataclass(frozen=True)
class Finding:
    """All faults of one kind.

    Attributes:
        kind: A key of `KINDS`.
        severity: "error", "warning" or "note".
        message: One sentence with the number of faults.
        hint: What to do about them.
        count: How many; more than there are examples where a reader told only the first place.
        examples: Where, in the order of the data set.
    """

    kind: str
    severity: Severity
    message: str
    hint: str
    count: int
    examples: tuple[Example, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        examples = [
            {
                "detail": example.detail,
                "files": [str(path) for path in example.paths],
                "boxes": [
                    {"label": box.label, "box": [round(v, 2) for v in box.xyxy_px]}
                    for box in example.boxes
                ],
            }
            for example in self.examples
        ]
        return {
            "kind": self.kind,
            "severity": self.severity,
            "count": self.count,
            "message": self.message,
            "hint": self.hint,
            "examples": examples,
        }


@dataclass(frozen=True)
class SplitSize:
    """How much a split holds; crowds are no boxes."""

    images: int
    boxes: int


@dataclass(frozen=True)
class CheckReport:
    """The result of a check.

    Attributes:
        root: Where the data lie.
        format: The form they were read in.
        splits: Size of each split.
        boxes_of_class: Boxes of each named class in all splits.
        images_decoded: Files that were opened and decoded.
        findings: Gravest first.
    """

    root: Path
    format: str
    splits: Mapping[str, SplitSize]
    boxes_of_class: Mapping[str, int]
    images_decoded: int
    findings: tuple[Finding, ...]

    def count(self, severity: Severity) -> int:
        """Faults of that severity."""
        return sum(f.count for f in self.findings if f.severity == severity)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "data": str(self.root),
            "format": self.format,
            "splits": {n: {"images": s.images, "boxes": s.boxes} for n, s in self.splits.items()},
            "classes": dict(self.boxes_of_class),
            "images_decoded": self.images_decoded,
            "counts": {severity: self.count(severity) for severity in SEVERITIES},
            "findings": [finding.to_dict() for finding in self.findings],
        }


class Collector:
    """Gathers faults by kind into findings."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, list[Example]]] = {}
        self._remarks: list[str] = []

    def add(self, kind: str, example: Example, count: int = 1) -> None:
        """Note `count` faults of a kind, of which one is told."""
        before, examples = self._found.get(kind, (0, []))
        self._found[kind] = (before + count, examples)
        examples.append(example)

    def has(self, kind: str) -> bool:
        """Whether a fault of that kind was noted."""
        return kind in self._found

    def remark(self, sentence: str) -> None:
        """Pass on what a reader said and no kind fits."""
        self._remarks.append(sentence)

    def findings(self) -> tuple[Finding, ...]:
        """One finding a kind and one a remark, in the order of `KINDS`, gravest first."""
        found = []
        for name, kind in KINDS.items():
            if name in self._found:
                count, examples = self._found[name]
                message = f"{count:,} {kind.one if count == 1 else kind.many}"
                found.append(
                    Finding(name, kind.severity, message, kind.hint, count, tuple(examples))
                )
        reading = KINDS["reading"]
        found += [Finding("reading", reading.severity, r, "", 1, ()) for r in self._remarks]
        return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))
