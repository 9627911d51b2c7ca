"""Watches the loss: which steps count, when a run goes back to its checkpoint, when it gives up.

A few bad steps are left out. Many in a row mean that the weights themselves are spoilt, so the run
returns to the last good checkpoint with a lower rate and in fp32; after two returns it stops.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dino_core.engine.step import StepResult

BAD_STEPS = 10
"""In a row. One odd image spoils a step; ten different batches are not odd by chance."""

HIGH_STEPS = 25
FAR = 5.0
"""Losses that are `FAR` times the usual one for `HIGH_STEPS` steps: batches differ by a factor of
two or three, and a run that recovers by itself does so sooner; a diverged one stays at ten times
or more."""

WINDOW, ENOUGH = 50, 20
"""The usual loss is the median of the last `WINDOW` good ones, once there are `ENOUGH`: long
against one batch, short against the loss's own fall."""

MAX_ROLLBACKS = 2
RATE_FACTOR = 0.25
"""Two returns cover a rate that is ten times too high, the commonest mistake (1e-3 for 1e-4)."""


@dataclass
class Sentinel:
    """What it remembers; a part of the run's saved state, so that a resumed run decides the same.

    Attributes:
        usual: The last good losses.
        bad: Steps in a row whose loss or gradients were not finite.
        high: Steps in a row whose loss was far above the usual one.
        unread: Steps in a row without a single readable image.
        rollbacks: Returns to a checkpoint so far.
    """

    usual: list[float] = field(default_factory=list)
    bad: int = 0
    high: int = 0
    unread: int = 0
    rollbacks: int = 0

    @property
    def calm(self) -> bool:
        """Whether the last step was good: only then is a checkpoint worth keeping."""
        return self.bad == self.high == 0

    @property
    def lr_factor(self) -> float:
        """What the learning rate is multiplied with after the returns so far."""
        return RATE_FACTOR**self.rollbacks

    @property
    def fp32(self) -> bool:
        """Whether the network is to calculate in fp32 whatever was asked for."""
        return self.rollbacks > 0

    def after_rollback(self, rollbacks: int) -> Sentinel:
        """What it remembers in a run that has returned to here."""
        return Sentinel(usual=self.usual, rollbacks=rollbacks)

    def see(self, result: StepResult) -> str:
        """Take in one step. Returns why the run must go back to its checkpoint, or ""."""
        if result.empty:
            self.unread += 1
            return ""
        self.unread = 0
        if not result.finite:
            self.bad += 1
        elif len(self.usual) >= ENOUGH and result.loss > FAR * statistics.median(self.usual):
            self.bad, self.high = 0, self.high + 1
        else:
            self.bad = self.high = 0
            self.usual = [*self.usual, result.loss][-WINDOW:]
        if self.bad >= BAD_STEPS:
            return f"the loss was not finite in {self.bad} steps in a row"
        if self.high >= HIGH_STEPS:
            return f"the loss was over {FAR:g} times its usual value in {self.high} steps in a row"
        return ""
