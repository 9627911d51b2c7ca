"""What every kind of predict output implements, and the file that most of them write into.

The modules of this package import no numpy when they are imported, because `dino predict --help`
lists the kinds of output from their table.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from dino_core.files import part_path, write_errors

if TYPE_CHECKING:
    from dino_core.inference.prediction import Prediction


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

    def abort(self) -> None:
        """Remove what is incomplete, after an error."""


class StreamedFile:
    """A text file that grows in a hidden part file and takes its name when it is finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = part_path(path)
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self._part.open("wb")

    def write(self, text: str) -> None:
        """Append `text` as UTF-8."""
        with write_errors(self.path):
            self._file.write(text.encode())
            # Flushed at once so that a full disk is reported at the image that did not fit, and
            # not at the end of the run.
            self._file.flush()

    def finish(self) -> None:
        """Give the file its name."""
        with write_errors(self.path):
            self._file.close()
            self._part.replace(self.path)

    def abort(self) -> None:
        """Remove the part file."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)
