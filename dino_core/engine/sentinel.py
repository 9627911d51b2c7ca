"""Watches the loss: which steps count, when a run returns to its checkpoint, when it gives up.

A few bad steps are left out. Many in a row mean that the weights themselves are spoiled, so the run
returns to the last good checkpoint with a lower learning rate and in fp32. After `MAX_ROLLBACKS`
returns it stops.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

BAD_STEPS = 10
"""Bad steps in a row that end the patience. One odd image spoils a step; ten different batches are
not odd by chance."""

HIGH_STEPS = 25
FAR = 5.0
"""A run has diverged when its loss is `FAR` times the usual one for `HIGH_STEPS` steps. Batches
differ by a factor of two or three, and a run that recovers by itself does so sooner; a diverged one
stays at ten times or more."""

WINDOW, ENOUGH = 50, 20
"""The usual loss is the median of the last `WINDOW` good ones, once there are `ENOUGH` of them. The
window is long compared with one odd batch and short compared with the fall of the loss itself."""

MAX_ROLLBACKS = 2
LR_FACTOR = 0.25
"""Two returns cover a learning rate that is ten times too high, the most common mistake (1e-3
instead of 1e-4)."""


@dataclass
class Sentinel:
    """What the watch remembers. It is saved with the state, so a resumed run decides the same.

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
        """Factor of the learning rate after the returns so far."""
        return LR_FACTOR**self.rollbacks

    @property
    def fp32(self) -> bool:
        """Whether the network must compute in fp32, whatever was asked for."""
        return self.rollbacks > 0

    def after_rollback(self, rollbacks: int) -> Sentinel:
        """What this saved watch remembers in a run that has returned to it `rollbacks` times."""
        # The saved losses are those of good steps. Counts of bad steps belong to the attempt that
        # failed.
        return Sentinel(usual=self.usual, rollbacks=rollbacks)

    def see(self, loss: float, *, finite: bool, empty: bool) -> str:
        """Take in one step.

        Args:
            loss: Its total loss.
            finite: Whether loss and gradients were finite.
            empty: Whether none of its images could be read.

        Returns:
            Why the run must return to its checkpoint, or "".
        """
        # Without images there is no loss to judge, good or bad.
        if empty:
            self.unread += 1
            return ""
        self.unread = 0
        if not finite:
            self.bad += 1
        elif len(self.usual) >= ENOUGH and loss > FAR * statistics.median(self.usual):
            # High losses do not enter the window, or they would become the usual ones.
            self.bad, self.high = 0, self.high + 1
        else:
            self.bad = self.high = 0
            self.usual = [*self.usual, loss][-WINDOW:]
        if self.bad >= BAD_STEPS:
            return f"the loss was not finite in {self.bad} steps in a row"
        if self.high >= HIGH_STEPS:
            return f"the loss was over {FAR:g} times its usual value in {self.high} steps in a row"
        return ""
