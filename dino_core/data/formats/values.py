"""Values of label files: numbers within bounds, text that can be written, and files to read.

A JSON integer can have thousands of digits and JSON text lone surrogates; both pass the parser and
fail much later. So every number and name of a label file goes through these functions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from dino_core.errors import DataError
from dino_core.files import require_regular_file
from dino_core.processing.image_files import LFS_REMEDY, is_lfs_pointer

LARGEST = 1e9
"""Numbers beyond are no pixels of any image."""
_LARGEST_ID = 2**63 - 1
_DIGITS = re.compile(r"[+-]?[0-9]{1,19}")
SURROGATES = re.compile("[\ud800-\udfff]")
"""Half characters of JSON, and what Python makes of bytes of a file name that are not UTF-8."""
MOST_LABEL_BYTES = 64 << 20
"""Bound of the file of labels of one image."""


def number(value: object) -> float | None:
    """A number, or the number that a text holds, up to `LARGEST`; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    # float() accepts "nan" and "inf", which are also possible class names.
    return found if math.isfinite(found) and abs(found) <= LARGEST else None


def whole_number(value: object) -> int | None:
    """An integer of 64 bits, also as a whole float or in a text; None for anything else."""
    if isinstance(value, str):
        value = int(value) if _DIGITS.fullmatch(value := value.strip()) else None
    elif isinstance(value, float):
        value = int(value) if value.is_integer() else None
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _LARGEST_ID:
        return None
    return value


def is_true(value: object) -> bool:
    """Whether a flag is set: true, a number above 0, or a text for one of these."""
    if isinstance(value, str):
        word = value.strip().lower()
        found = number(word)
        return word in ("true", "yes", "y", "t") if found is None else found > 0
    return bool(value)


def clean(text: str) -> str:
    """The text with a question mark for each lone surrogate, which no file can hold."""
    return SURROGATES.sub("?", text)


def in_class_order(names: Iterable[str]) -> list[str]:
    """Class names in the order of their indices: by value where all are numbers, else by name."""
    names = list(names)
    if all(number(name) is not None for name in names):
        return sorted(names, key=lambda name: (number(name), name))
    return sorted(names)


def listed(keys: Iterable[object]) -> str:
    """The first of some keys, for a message; "nothing" where there is none."""
    first = [clean(f"{key!s:.40}") for key in islice(keys, 12)]
    return ", ".join(first) or "nothing"


def read_bytes(file: Path, most: int | None = None) -> bytes:
    """The content of a label file.

    Args:
        file: The file.
        most: The most bytes that are read; None for any number.

    Raises:
        DataError: it is not there, no regular file, too large, or cannot be read.
    """
    try:
        size = require_regular_file(file).st_size
        if most is not None and size > most:
            raise DataError(
                f"{file}: the file has {size:,} bytes, at most {most:,} are read",
                "is it a label file?",
            )
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
    if is_lfs_pointer(content):
        raise DataError(f"{file}: a Git LFS pointer, not the file itself", LFS_REMEDY)
    return content


def read_text(file: Path, most: int | None = None) -> str:
    """The content of a text file in UTF-8. Arguments and errors are those of `read_bytes`."""
    try:
        return read_bytes(file, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: cannot be read as text ({error})", "save it as UTF-8") from error


def start_of(file: Path, size: int) -> bytes | None:
    """The first bytes of a file; None where it cannot be read, as its reader will report."""
    try:
        require_regular_file(file)
        with file.open("rb") as stream:
            return stream.read(size)
    except (OSError, DataError):
        return None
