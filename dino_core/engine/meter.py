"""Turns optimizer steps into the reports of a run: means since the last report."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_core.engine.events import StepDone
from dino_core.engine.memory import peak_memory_mb
from dino_core.engine.parallel.collectives import all_reduce_mean, world_size
from dino_core.engine.planning.plan import Plan
from dino_core.engine.state import Counters
from dino_core.engine.step import StepResult


class StepMeter:
    """Collects steps until they are reported.

    Attributes:
        steps: Steps since the last report.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.clear()

    def clear(self) -> None:
        """Forget the steps since the last report."""
        self.steps = 0
        self._images = 0
        self._seconds = 0.0
        self._losses: dict[str, Tensor] = {}
        self._last: StepResult | None = None

    def add(self, result: StepResult, seconds: float) -> None:
        """Take in one step that took `seconds`."""
        self.steps += 1
        # An estimate from this process, which costs no exchange at each step.
        self._images += result.images * world_size()
        self._seconds += seconds
        self._last = result
        for name, value in result.losses.items():
            self._losses[name] = self._losses.get(name, torch.zeros_like(value)) + value

    def report(self, counters: Counters, plan: Plan, progress: float, elapsed_s: float) -> StepDone:
        """The event for the steps since the last report; losses are means over the processes."""
        assert self._last is not None
        # One exchange for all terms: their number is the same in every process.
        means = all_reduce_mean(torch.stack(list(self._losses.values())) / self.steps)
        event = StepDone(
            step=counters.step,
            steps_total=plan.steps,
            epoch=counters.epoch,
            progress=progress,
            losses=dict(zip(self._losses, means.tolist(), strict=True)),
            lr=self._last.lr,
            grad_norm=self._last.grad_norm,
            images_per_s=self._images / max(self._seconds, 1e-9),
            memory_mb=self._memory_mb(),
            eta_s=max(0.0, self._eta_s(counters, plan, progress, elapsed_s)),
        )
        self.clear()
        return event

    def _eta_s(self, counters: Counters, plan: Plan, progress: float, elapsed_s: float) -> float:
        if plan.steps is not None:
            return (plan.steps - counters.step) * self._seconds / self.steps
        # With a time limit, progress is a share of the time.
        return elapsed_s / max(progress, 1e-6) - elapsed_s

    def _memory_mb(self) -> float:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**20
        return peak_memory_mb()
