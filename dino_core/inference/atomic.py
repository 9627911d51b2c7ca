"""Writing a file so that it appears whole or not at all, with an error people understand."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dino_core.errors import DinoError
from dino_core.files import whole_file

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its name when the block ends, and vanishes when it raises.

    Raises:
        DinoError: it cannot be written, e.g. the disk is full.
    """
    try:
        with whole_file(path) as file:
            yield file
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> DinoError:
    """What to tell about a failed write."""
    if error.errno in _FULL:
        return DinoError(
            f"{path}: the disk is full; nothing half-written is left",
            "free some space, or choose another --out",
        )
    reason = error.strerror or str(error)
    return DinoError(f"{path}: cannot be written ({reason})", "choose another --out")
