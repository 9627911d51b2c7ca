"""A run in TensorBoard: `tensorboard --logdir runs`. Events of one step replace earlier ones of it.

TensorBoard forgets what was logged after a step when a writer says so at its start (`purge_step`);
that is how a resumed run, or one that went back to its checkpoint, goes on without double points.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from dino_core.engine.events import CheckpointSaved, EvaluationDone, Event, PicturesDrawn, Warned
from dino_core.engine.loggers.group import Opening, hyper_parameters, picture_tag, scalars

_GOALS = ("val/ap", "val/ap50")  # what the table of hyper-parameters shows beside them


class TensorBoardLogger:
    """Scalars, pictures and hyper-parameters in the run's folder tensorboard/."""

    def __init__(self, opening: Opening) -> None:
        self._folder = opening.folder
        self._step = opening.planned.resumed_step
        goes_on = opening.folder.tensorboard.exists()
        self._writer: Any = self._open(self._step + 1 if goes_on else None)
        if not goes_on:
            self._add_hyper_parameters(opening)

    def log(self, event: Event) -> None:
        """Take one event."""
        step = getattr(event, "step", self._step)
        if isinstance(event, Warned) and step < self._step:  # back to a checkpoint
            self.close()
            self._writer = self._open(step + 1)
        self._step = step
        for name, value in scalars(event).items():
            self._writer.add_scalar(name, value, step)
        if isinstance(event, PicturesDrawn):
            for path in event.paths:
                self._add_picture(path, step)
        if isinstance(event, (EvaluationDone, CheckpointSaved)):
            self._writer.flush()  # a killed run resumes from here

    def close(self) -> None:
        """Write everything and end the writer's thread."""
        self._writer.close()

    def _open(self, purge_step: int | None) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks of the packages that it imports
            from torch.utils.tensorboard import SummaryWriter

            return SummaryWriter(str(self._folder.tensorboard), purge_step=purge_step)

    def _add_hyper_parameters(self, opening: Opening) -> None:
        """A session of the HParams page. `add_hparams` would make a second run of it."""
        from torch.utils.tensorboard import summary

        goals = dict.fromkeys(_GOALS, 0.0)  # names only: the values are the run's own scalars
        for part in summary.hparams(hyper_parameters(opening), goals):  # type: ignore[no-untyped-call]
            self._writer.file_writer.add_summary(part)

    def _add_picture(self, path: Path, step: int) -> None:
        """The file's own bytes, where `add_image` would encode the pixels anew."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as image:
            width, height = image.size
        content = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes()
        )
        value = Summary.Value(tag=picture_tag(self._folder, path), image=content)
        self._writer.file_writer.add_summary(Summary(value=[value]), step)
