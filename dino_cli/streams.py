"""The standard streams of the process, where they are closed, full or without a reader."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any


def prepare() -> None:
    """Make the standard streams safe to use; call it once, before anything is printed.

    A closed one is replaced by the null device: Python sets it to None, and the next file that is
    opened would get its number and receive what libraries print. Messages never end a run: where
    stderr is full or its reader is gone, they are dropped.
    """
    global _stdout_closed
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            _stdout_closed |= name == "stdout"
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be anything
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stderr = io.TextIOWrapper(
        _Messages(2, "w", closefd=False),
        encoding=sys.stderr.encoding,
        errors="backslashreplace",
        write_through=True,
    )


_stdout_closed = False


def is_stdout_closed() -> bool:
    """Whether stdout was closed when the process started."""
    return _stdout_closed


def drop_stdout() -> None:
    """Send what is still printed on stdout to the null device, also at the end of the process."""
    with contextlib.suppress(OSError, ValueError):  # stdout of a test may have no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Messages(io.FileIO):
    """A file whose writing never fails."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)
