"""What every kind of predict output implements, and the file that most of them write into.

The modules of this package import no numpy when they are imported, because `dino predict --help`
lists the kinds of output from their table.
"""

from __future__ import annotations

import contextlib
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dino_core.files import part_path, write_errors

if TYPE_CHECKING:
    from dino_core.inference.prediction import Prediction

_ENDS_KEPT = 8


class Writer(Protocol):
    """Writes one kind of output of a run.

    `add` receives every prediction of the run in input order, unreadable images and video frames
    included; each writer skips those it has no use for. All three methods raise DinoError when
    something cannot be written, except `abort`, which never raises.
    """

    def add(self, prediction: Prediction, stem: str) -> None:
        """Write one prediction.

        Args:
            prediction: Detections of one image or video frame, or why it could not be read. Its
                `image` is None where it was predicted by an earlier run.
            stem: Relative path without suffix, unique to the image or video, that files of this
                prediction are named after.
        """

    def finish(self) -> None:
        """Complete the output, after the last prediction or an interrupt."""

    def abort(self, *, keep: bool = False) -> None:
        """Remove what is incomplete, after an error of this writer.

        Args:
            keep: Whether complete records of an incomplete file are kept.
        """


class StreamedFile:
    """A text file that grows in a hidden part file and takes its name when it is finished.

    Where the disk is full, the records that are complete are kept under its name.

    Attributes:
        ending: What follows the last record.
    """

    ending = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = part_path(path)
        self._ends: list[int] = [0]  # where the last records end, oldest first
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer, so that a full disk is reported at the record that did not fit.
            self._file: FileIO = self._part.open("wb", buffering=0)

    def write(self, text: str) -> None:
        """Append a record, `text` as UTF-8."""
        with write_errors(self.path, kept="the results before are kept"):
            self._write(text)
        self._ends = [*self._ends[-_ENDS_KEPT:], self._file.tell()]

    def write_header(self, text: str) -> None:
        """Begin with `text`, which is no record: a file with nothing else is not kept."""
        self.write(text)
        self._ends = self._ends[-1:]

    def _write(self, text: str) -> None:
        rest = memoryview(text.encode("utf-8", "backslashreplace"))
        while rest:  # the system may write a part only
            rest = rest[self._file.write(rest) :]

    def finish(self) -> None:
        """Give the file its name."""
        with write_errors(self.path):
            self._take_name()

    def _take_name(self) -> None:
        self._file.close()
        self._part.replace(self.path)

    def abort(self, *, keep: bool = False) -> None:
        """Remove the part file, or give it its name with the records that are complete.

        Args:
            keep: Keep them, if there are any; some are given up where `ending` does not fit.
        """
        with contextlib.suppress(OSError, ValueError):
            while keep and len(self._ends) > 1:
                self._file.seek(self._ends.pop())
                self._file.truncate()
                with contextlib.suppress(OSError):
                    self._write(self.ending)
                    self._take_name()
                    return
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)
