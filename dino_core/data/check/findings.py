"""What a check of a data set reports: all faults of one kind are one finding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_core.data.fault_kinds import KINDS, SEVERITIES, Severity
from dino_core.data.faults import Fault, message_of


@dataclass(frozen=True)
class Finding:
    """All faults of one kind.

    Attributes:
        kind: A key of `KINDS`.
        severity: "error", "warning" or "note".
        message: One sentence with the number of faults.
        hint: What to do about them.
        count: How many; more than there are examples where only some places were kept.
        examples: Where, in the order of the data set.
    """

    kind: str
    severity: Severity
    message: str
    hint: str
    count: int
    examples: tuple[Fault, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        examples = [
            {
                "detail": example.place,
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
    """How much a split holds; crowds do not count as boxes."""

    images: int
    boxes: int


@dataclass(frozen=True)
class CheckReport:
    """The result of a check.

    Attributes:
        root: Where the data lie.
        format: The format in which they were read.
        splits: Size of each split.
        boxes_of_class: Boxes of each named class in all splits.
        images_decoded: Files that were opened and decoded.
        findings: Errors first.
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


def findings_of(faults: Iterable[Fault]) -> tuple[Finding, ...]:
    """One finding per kind of fault: errors first, within a severity in the order of `KINDS`."""
    by_kind: dict[str, list[Fault]] = {}
    for fault in faults:
        by_kind.setdefault(fault.kind, []).append(fault)
    found = []
    for name, kind in KINDS.items():
        if name in by_kind:
            count = sum(fault.count for fault in by_kind[name])
            message = message_of(name, count)
            found.append(
                Finding(name, kind.severity, message, kind.hint, count, tuple(by_kind[name]))
            )
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))
