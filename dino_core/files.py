"""Files that appear whole or not at all, and their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """A binary file that takes its name when the block ends, and vanishes when it raises.

    What it held before is replaced at once, and is still there when the program is killed or the
    disk is full. Missing folders are made.

    Args:
        path: Where to.
        durable: Also when the machine stops; takes some milliseconds.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(path)
    try:
        with part.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write `text` as UTF-8, whole or not at all. Arguments and errors as `whole_file`'s."""
    with whole_file(path, durable=durable) as file:
        file.write(text.encode())


def part_path(path: Path) -> Path:
    """Where a file lies while it is being written: hidden, in the same folder."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def sha256_of(path: Path) -> str:
    """The checksum of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
