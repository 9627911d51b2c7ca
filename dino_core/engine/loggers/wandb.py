"""Logs a run to Weights & Biases, whose own settings apply (WANDB_MODE, WANDB_PROJECT, ...)."""

from __future__ import annotations

import os
import secrets
from typing import Any

from dino_core.engine.events import Event, PicturesDrawn, RunFinished
from dino_core.engine.loggers.base import (
    Opening,
    hyper_parameters,
    picture_tag,
    remembered_id,
    scalars,
)
from dino_core.network import is_offline

_PROJECT = "dino"


class WandbLogger:
    """One W&B run, which a resumed run continues."""

    def __init__(self, opening: Opening) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # no telemetry
        import wandb

        self._wandb: Any = wandb
        self._folder = opening.folder
        self._step = opening.planned.resumed_step
        self._finished = False
        run_id, _ = remembered_id(opening.folder, "wandb", lambda: secrets.token_hex(4))
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=os.environ.get("WANDB_NAME", opening.folder.root.name),
            id=run_id,
            resume="allow",
            dir=str(opening.folder.root.resolve()),
            config=hyper_parameters(opening),
            mode="offline" if is_offline() else None,  # None: as WANDB_MODE says
            settings=wandb.Settings(silent=True, console="off"),
        )
        # W&B's own step can only grow, but ours goes back on a rollback or a resume.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, event: Event) -> None:
        """Take one event."""
        self._step = getattr(event, "step", self._step)
        row: dict[str, Any] = dict(scalars(event))
        if isinstance(event, PicturesDrawn):
            row = {picture_tag(self._folder, p): self._wandb.Image(str(p)) for p in event.paths}
        if row:
            self._run.log({"step": self._step, **row})
        self._finished = self._finished or isinstance(event, RunFinished)

    def close(self) -> None:
        """Send the rest, and report whether the run finished."""
        self._run.finish(exit_code=0 if self._finished else 1)
