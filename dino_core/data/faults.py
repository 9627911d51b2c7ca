"""What is wrong with a labeled data set: each fault as a value, of a kind of `fault_kinds.KINDS`.

Readers and checks record a `Fault` where they see one; `dino check`, the training plan and error
messages render them from `KINDS`, so that every fault is worded once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dino_core.data.fault_kinds import KINDS
from dino_core.errors import DataError

_MAX_PLACES = 10_000  # per kind; faults beyond that are only counted, which bounds the memory


@dataclass(frozen=True)
class MarkedBox:
    """A box to show: corners in pixels of the upright image, and its class or what it is."""

    xyxy_px: tuple[float, float, float, float]
    label: str


@dataclass(frozen=True)
class Fault:
    """One fault, or several equal ones of which only the number is known.

    Attributes:
        kind: A key of `KINDS`.
        place: Where it is (file and line, entry or image) and what was found there.
        paths: The image at fault, or all images of a group of equal ones; empty where the fault
            belongs to no image.
        boxes: The boxes at fault, on the first of the images.
        count: How many faults this stands for.
    """

    kind: str
    place: str
    paths: tuple[Path, ...] = ()
    boxes: tuple[MarkedBox, ...] = ()
    count: int = 1


class FaultLog:
    """Collects faults; beyond 10,000 of one kind the others are only counted."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._faults = list(faults)
        self._places = Counter(fault.kind for fault in self._faults)
        self._beyond: Counter[str] = Counter()

    def add(
        self,
        kind: str,
        place: str,
        paths: Iterable[Path] = (),
        boxes: Iterable[MarkedBox] = (),
        count: int = 1,
    ) -> None:
        """Record a fault; the arguments are the fields of `Fault`."""
        if self._places[kind] >= _MAX_PLACES:
            self._beyond[kind] += count
            return
        self._places[kind] += 1
        self._faults.append(Fault(kind, place, tuple(paths), tuple(boxes), count))

    def add_error(self, kind: str, error: DataError, paths: Iterable[Path] = ()) -> None:
        """Record what a parser raised about one label, image or file."""
        self.add(kind, str(error), paths)

    def has(self, kind: str) -> bool:
        """Whether a fault of that kind was recorded."""
        return kind in self._places

    def faults(self) -> tuple[Fault, ...]:
        """All faults in the order in which they were recorded."""
        rest = (
            Fault(kind, f"{count:,} more places", count=count)
            for kind, count in self._beyond.items()
        )
        return (*self._faults, *rest)


def summarized(faults: Iterable[Fault]) -> tuple[str, ...]:
    """One sentence per kind with the number of faults and the first place, in order of `KINDS`."""
    counts: dict[str, int] = {}
    first: dict[str, str] = {}
    for fault in faults:
        counts[fault.kind] = counts.get(fault.kind, 0) + fault.count
        first.setdefault(fault.kind, fault.place)
    return tuple(
        f"{message_of(kind, counts[kind])} ({'' if counts[kind] == 1 else 'first: '}{first[kind]})"
        for kind in KINDS
        if kind in counts
    )


def message_of(kind: str, count: int) -> str:
    """What `count` faults of a kind are, e.g. "3 images end early"."""
    return f"{count:,} {KINDS[kind].one if count == 1 else KINDS[kind].many}"
