"""Logs a run to TensorBoard: `tensorboard --logdir runs`.

A writer can start with the request to forget what was logged from a step on (`purge_step`). That is
how a resumed run, or one that returned to its checkpoint, continues without double points.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from dino_core.engine.events import (
    CheckpointSaved,
    EvaluationDone,
    Event,
    PicturesDrawn,
    RolledBack,
)
from dino_core.engine.loggers.base import Opening, hyper_parameters, picture_tag, scalars
from dino_core.processing.image_files import open_image

_GOALS = ("val/ap", "val/ap50")  # scores that the table of hyper-parameters shows


class TensorBoardLogger:
    """Scalars, pictures and hyper-parameters in the run's folder tensorboard/."""

    def __init__(self, opening: Opening) -> None:
        self._folder = opening.folder
        self._step = opening.planned.resumed_step
        continued = opening.folder.tensorboard.exists()
        self._writer: Any = self._open(self._step + 1 if continued else None)
        if not continued:
            self._add_hyper_parameters(opening)

    def log(self, event: Event) -> None:
        """Take one event."""
        step = getattr(event, "step", self._step)
        if isinstance(event, RolledBack):
            self.close()
            self._writer = self._open(step + 1)
        self._step = step
        for name, value in scalars(event).items():
            self._writer.add_scalar(name, value, step)
        if isinstance(event, PicturesDrawn):
            for path in event.paths:
                self._add_picture(path, step)
        if isinstance(event, (EvaluationDone, CheckpointSaved)):
            self._writer.flush()  # a killed run is resumed from here

    def close(self) -> None:
        """Write everything and end the writer's thread."""
        self._writer.close()

    def _open(self, purge_step: int | None) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from packages that TensorBoard imports
            from torch.utils.tensorboard import SummaryWriter

            return SummaryWriter(str(self._folder.tensorboard), purge_step=purge_step)

    def _add_hyper_parameters(self, opening: Opening) -> None:
        """Log a session for the HParams page. `add_hparams` would log it as a second run."""
        from torch.utils.tensorboard import summary

        goals = dict.fromkeys(_GOALS, 0.0)  # names only: the values come from the run's scalars
        for part in summary.hparams(hyper_parameters(opening), goals):  # type: ignore[no-untyped-call]
            self._writer.file_writer.add_summary(part)

    def _add_picture(self, path: Path, step: int) -> None:
        """Log the file's own bytes; `add_image` would encode the pixels again."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        with open_image(path) as image:
            width, height = image.size
        content = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes()
        )
        value = Summary.Value(tag=picture_tag(self._folder, path), image=content)
        self._writer.file_writer.add_summary(Summary(value=[value]), step)
