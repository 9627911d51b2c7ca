"""The checksum in a model file: a SHA-256 of the whole file with its own digits set to zero.

It stands in the metadata of the safetensors header and covers the weights, their names and shapes,
and the description of the model, so that a single changed byte anywhere is found. It is written
with every model file and compared by `dino models verify`; loading does not read the whole file.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from pathlib import Path
from typing import BinaryIO

from dino_core.errors import CheckpointError

CHECKSUM_KEY = "checksum"
"""The key of the checksum in the string metadata of a safetensors file."""

NO_CHECKSUM_YET = "sha256:" + "0" * 64
"""The value that a file is written with, and of which `write_checksum` replaces the digits."""

# A quotation mark inside a JSON string has a backslash before it, so no text can imitate the entry.
_ENTRY = re.compile(rf'"{CHECKSUM_KEY}"\s*:\s*"sha256:([0-9a-f]{{64}})"'.encode())
_LENGTH = struct.Struct("<Q")  # of the JSON header, at the start of the file
_MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors library
_BLOCK = 1 << 20


def write_checksum(path: Path) -> None:
    """Compute the checksum of a file that was written with `NO_CHECKSUM_YET`, and store it.

    The file is flushed to the disk.

    Raises:
        OSError: The file cannot be read or written.
    """
    with path.open("rb+") as file:
        start, digits = _stored(file)
        if digits:
            file.seek(0)
            digest = _digest(file, start)
            file.seek(start)
            file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())


def check_checksum(path: Path, entries: dict[str, str]) -> bool:
    """Compare a model file with its checksum.

    Args:
        path: A safetensors file whose header can be read.
        entries: The string metadata in its header.

    Returns:
        False if the file carries no checksum, as files of version 0.1.0 do.

    Raises:
        CheckpointError: The file differs from what was written.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start, digits = _stored(file)
        if digits:
            file.seek(0)
            if _digest(file, start) == digits:
                return True
        elif CHECKSUM_KEY not in entries and not _has_renamed(entries):
            return False
    raise CheckpointError(
        f"{path}: damaged: its content does not match its checksum",
        "copy or download the file again, or restore it from a backup",
    )


def _has_renamed(entries: dict[str, str]) -> bool:
    """Whether a checksum is stored under another key, because a byte of the key was changed."""
    return any(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in entries.values())


def _stored(file: BinaryIO) -> tuple[int, str]:
    """Position of the first digit, and the digits; an empty string if there are none."""
    length = _LENGTH.unpack(file.read(_LENGTH.size).ljust(_LENGTH.size, b"\0"))[0]
    found = _ENTRY.search(file.read(length)) if length <= _MAX_HEADER else None
    return (_LENGTH.size + found.start(1), found[1].decode()) if found else (0, "")


def _digest(file: BinaryIO, start: int) -> str:
    """The SHA-256 of a file in which the 64 digits from `start` on count as zeros."""
    digest = hashlib.sha256(file.read(start))
    digest.update(b"0" * len(file.read(64)))
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
