"""All outputs of one run of `dino predict`, opened, written and completed together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from dino_core.detections import ClassMap
from dino_core.files import part_owner
from dino_core.inference.names import NameBook
from dino_core.inference.outputs.previous import abandoned_parts
from dino_core.inference.outputs.table import OUTPUTS, check_outputs
from dino_core.inference.outputs.writer import Writer

if TYPE_CHECKING:
    from dino_core.inference.prediction import Prediction
    from dino_core.inference.resolve import SourceItem


class Writers:
    """Writes predictions in every chosen kind of output; a context manager.

    Leaving the block completes the outputs, also after an interrupt or an error elsewhere. After an
    error while writing, the records before it are kept and incomplete files are removed. Where
    nothing was written when an error ends the block, the files of an earlier run are left alone.
    """

    def __init__(
        self,
        kinds: Iterable[str],
        out: Path,
        classes: ClassMap,
        *,
        items: Iterable[SourceItem] = (),
        previous: Iterable[Prediction] = (),
    ) -> None:
        """Open the outputs.

        Args:
            kinds: Some keys of `OUTPUTS`.
            out: The result folder.
            classes: The model's classes.
            items: All sources of the run. Their file names are reserved first, so that a source
                gets the same name whether or not the ones before it are predicted this time.
            previous: What an earlier run wrote into `out` (see `read_finished`), repeated in the
                new files.

        Raises:
            ConfigError: an unknown kind.
            DinoError: a file cannot be written.
        """
        kinds = check_outputs(kinds)
        self._names = NameBook()
        for item in items:
            self._names.stem(item.source, item.name)
        self._writers: list[Writer] = []
        self._open = True
        self._added = 0
        leftovers = abandoned_parts(out)
        # Part files with the number of this process have the names that its own will have.
        _remove(part for part in leftovers if part_owner(part) == os.getpid())
        leftovers = [part for part in leftovers if part_owner(part) != os.getpid()]
        try:
            for kind in kinds:
                self._writers.append(OUTPUTS[kind].open(out, classes))
            for prediction in previous:
                self._add(prediction)
        except Exception:  # the files of the earlier run are still there
            self.abort()
            raise
        # Only now: the part files of a killed run may be where `previous` was read from.
        _remove(leftovers)

    def add(self, prediction: Prediction) -> None:
        """Write one prediction. Raises DinoError where that fails, e.g. on a full disk."""
        try:
            self._add(prediction)
        except Exception:
            self._keep_finished()
            raise
        self._added += 1

    def _add(self, prediction: Prediction) -> None:
        stem = self._names.stem(prediction.source, prediction.name or prediction.source)
        for writer in self._writers:
            writer.add(prediction, stem)

    def finish(self) -> None:
        """Complete all outputs. Raises the DinoError of the first that fails, after the others."""
        if not self._open:
            return
        self._open = False
        first: Exception | None = None
        for writer in self._writers:
            try:
                writer.finish()
            except Exception as error:
                writer.abort(keep=True)
                first = first or error
        if first is not None:
            raise first

    def abort(self) -> None:
        """Remove what is incomplete."""
        self._open = False
        for writer in self._writers:
            writer.abort()

    def _keep_finished(self) -> None:
        """After an error of a writer: complete what can be completed, with the images before."""
        self._open = False
        for writer in self._writers:
            with contextlib.suppress(Exception):
                writer.abort(keep=True)

    def __enter__(self) -> Writers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and not self._added:
            self.abort()
        else:
            self.finish()


def _remove(parts: Iterable[Path]) -> None:
    for part in parts:
        with contextlib.suppress(OSError):
            part.unlink()
