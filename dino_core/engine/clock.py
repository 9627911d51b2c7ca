"""The working time of a run over all its sessions, the same in every process."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from dino_core.engine.parallel.collectives import rank, sums
from dino_core.engine.planning.plan import evaluation_due
from dino_core.engine.state import Counters


class RunClock:
    """Counts the seconds that a run has worked, and those that went into evaluation.

    Every decision about time (the end of a run with a time limit, evaluations, checkpoints) uses
    rank 0's clock: processes that decided differently would wait for each other forever.

    Attributes:
        elapsed_s: Working seconds of all sessions, as of the last `read`.
        interrupts: Signals that have arrived and wait for the end of the step; collected only
            where several processes train together.
        stopping: Whether all processes have agreed to stop at this step.
    """

    def __init__(self, counters: Counters, device: torch.device) -> None:
        self.elapsed_s = counters.elapsed_s
        self.interrupts: Sequence[int] = ()
        self.stopping = False
        self._counters, self._device = counters, device
        # What earlier sessions worked. A pause between sessions does not count.
        self._earlier_s = counters.elapsed_s
        self._started = 0.0
        self._evaluation_began_s = 0.0

    def start(self) -> None:
        """The session begins now."""
        self._started = time.monotonic()

    def read(self) -> None:
        """Update `elapsed_s`, and let all processes stop where one of them was asked to.

        Raises:
            KeyboardInterrupt: in every process, where a signal arrived in one of them.
        """
        now = self._earlier_s + time.monotonic() - self._started
        # Rank 0's time and everybody's interrupts in one exchange: the others add 0.0, so the sum
        # is the time.
        own = (float(bool(self.interrupts)), now if rank() == 0 else 0.0)
        stops, self.elapsed_s = sums(own, self._device)
        if stops:
            self.stopping = True
            # At a point where no process is inside a step, so that all of them can save together.
            raise KeyboardInterrupt

    def evaluation_due(self, val_images: int, train_images: int) -> bool:
        """Whether evaluating now keeps evaluation within its share of the working time."""
        counters = self._counters
        # The first evaluation has no measured cost yet, but forward passes take about a third of a
        # training step, and the number of images seen so far is known.
        epochs_it_takes = val_images / train_images / max(1, counters.epoch)
        return evaluation_due(
            self.elapsed_s, counters.evaluating_s, counters.evaluation_s, epochs_it_takes
        )

    def begin_evaluation(self) -> None:
        self.read()
        self._evaluation_began_s = self.elapsed_s

    def evaluation_s(self) -> float:
        """Seconds since the evaluation began."""
        self.read()
        return self.elapsed_s - self._evaluation_began_s

    def end_evaluation(self) -> None:
        """Charge the time since `begin_evaluation` to evaluation."""
        spent = self.evaluation_s()
        self._counters.evaluation_s = spent
        self._counters.evaluating_s += spent
