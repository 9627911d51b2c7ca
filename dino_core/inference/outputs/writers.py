"""All outputs of one run of `dino predict`, opened, written and completed together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from dino_core.detections import ClassMap
from dino_core.inference.names import NameBook
from dino_core.inference.outputs.table import OUTPUTS, check_outputs
from dino_core.inference.outputs.writer import Writer

if TYPE_CHECKING:
    from dino_core.inference.prediction import Prediction
    from dino_core.inference.sources import SourceItem


class Writers:
    """Writes predictions in every chosen kind of output; a context manager.

    Leaving the block completes the outputs, also after an interrupt or an error elsewhere. An error
    while writing removes the incomplete files instead.

    Attributes:
        out: The result folder.
        kinds: Keys of `OUTPUTS` that are written.
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
        self.out = out
        self.kinds = check_outputs(kinds)
        self._names = NameBook()
        for item in items:
            self._names.stem(item.source, item.name)
        self._writers: list[Writer] = []
        self._open = True
        with self._aborting():
            for kind in self.kinds:
                self._writers.append(OUTPUTS[kind].open(out, classes))
        for prediction in previous:
            self.add(prediction)

    def add(self, prediction: Prediction) -> None:
        """Write one prediction. Raises DinoError where that fails, e.g. on a full disk."""
        stem = self._names.stem(prediction.source, prediction.name or prediction.source)
        with self._aborting():
            for writer in self._writers:
                writer.add(prediction, stem)

    def finish(self) -> None:
        """Complete all outputs. Raises DinoError where that fails."""
        if not self._open:
            return
        with self._aborting():
            for writer in self._writers:
                writer.finish()
        self._open = False

    def abort(self) -> None:
        """Remove what is incomplete."""
        self._open = False
        for writer in self._writers:
            writer.abort()

    @contextlib.contextmanager
    def _aborting(self) -> Iterator[None]:
        # An interrupt is no Exception: what was written up to it is kept and completed.
        try:
            yield
        except Exception:
            self.abort()
            raise

    def __enter__(self) -> Writers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish()
