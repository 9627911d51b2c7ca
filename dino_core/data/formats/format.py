"""What a format of labeled data is: how to find, read and write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from dino_core.data.records import DatasetIndex

Found = TypeVar("Found")


def _always(_found: object) -> bool:
    return True


@dataclass(frozen=True)
class Format(Generic[Found]):
    """One format; `Found` is the type of what its finder hands to its reader.

    Attributes:
        title: Its name in texts, e.g. "Pascal VOC".
        layout: What such a data set looks like, in a few words, for help texts and errors.
        find: What there is to read at a path; None where the path is not of this format. It looks
            at names and the first bytes of files only. Raises DataError where the format is clear
            but its files contradict each other.
        read: The data set, with every fault of its labels in `DatasetIndex.faults`. Raises
            DataError only where the data set as a whole cannot be understood.
        write: Writes a data set into a folder, and returns what the format could not hold, one
            sentence each. Raises OSError where the folder cannot be written, and DataError where
            the format cannot hold the data set.
        names_classes: Whether what was found names its classes. Where a folder fits several
            formats, one that does goes first.
        label_file: The label file that an image must have even without objects; None where images
            without objects need none.
    """

    title: str
    layout: str
    find: Callable[[Path], Found | None]
    read: Callable[[Found], DatasetIndex]
    write: Callable[[DatasetIndex, Path], list[str]]
    names_classes: Callable[[Found], bool] = _always
    label_file: Callable[[Path], Path] | None = None
