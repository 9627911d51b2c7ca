"""One optimiser step, and the meter that turns steps into reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dino_core.config import TrainConfig
from dino_core.data.batching import Batch
from dino_core.engine.distributed import all_reduce_mean, all_true, rank, wrap
from dino_core.engine.ema import Ema
from dino_core.engine.events import StepDone
from dino_core.engine.memory import peak_memory_mb
from dino_core.engine.optimizer import set_lr
from dino_core.engine.plan import Plan
from dino_core.engine.schedule import lr_factor
from dino_core.engine.state import Counters
from dino_core.losses.criterion import Criterion
from dino_core.models.dino import Dino


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    Attributes:
        finite: Whether loss and gradients were finite; the weights are unchanged if not.
        losses: Detached scalars, means over the accumulated batches.
        grad_norm: Before clipping.
        lr: The head's rate.
    """

    finite: bool
    losses: dict[str, Tensor]
    grad_norm: float
    lr: float


class Stepper:
    """Forward, backward and update of one model.

    Attributes:
        updating: Weights and counters are not of one step at this moment; the run resets it.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Dino,
        ema: Ema[Dino] | None,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config = config
        self.model, self.ema, self.optimizer = model, ema, optimizer
        self.device, self.dtype = device, dtype
        self.criterion = Criterion(config.loss)
        self.updating = False
        self._wrapped = wrap(model, device)
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    @property
    def autocasts(self) -> bool:
        return self.dtype != torch.float32

    def step(self, batches: Sequence[Batch], step: int, progress: float) -> StepResult:
        """Accumulate the gradients of `batches` and update the weights once.

        Args:
            batches: Micro-batches; the loss is their mean.
            step: Steps done before this one.
            progress: Fraction of the run that is done.
        """
        self.model.train()
        if self.config.freeze == "backbone":
            self.model.backbone.eval()
        self.optimizer.zero_grad(set_to_none=True)
        factor = lr_factor(self.config, step, progress, self.config.warmup_steps)
        set_lr(self.optimizer, factor)
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            terms, finite = self._accumulate(batch, step, index, len(batches))
            for name, value in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value / len(batches)
            if not finite:
                return StepResult(False, sums, float("nan"), self.config.lr * factor)
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm))
        if not np.isfinite(norm):  # equal in all processes: gradients are averaged
            return StepResult(False, sums, norm, self.config.lr * factor)
        self.updating = True
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        return StepResult(True, sums, norm, self.config.lr * factor)

    def _accumulate(
        self, batch: Batch, step: int, index: int, count: int
    ) -> tuple[dict[str, Tensor], bool]:
        """Forward and backward of one micro-batch: its detached loss terms, and whether finite."""
        images = batch.images.to(self.device, non_blocking=True)
        mask = batch.padding_mask.to(self.device, non_blocking=True)
        targets = [t.to(str(self.device)) for t in batch.targets]
        generator = noise_generator(self.config.seed, step, index)
        with torch.autocast(self.device.type, self.dtype, enabled=self.autocasts):
            output = self._wrapped(images, mask, targets, generator)
        boxes = torch.tensor(float(sum(len(t.labels) for t in targets)), device=self.device)
        losses = self.criterion(output, targets, float(all_reduce_mean(boxes)))
        finite = all_true(bool(torch.isfinite(losses.total)), self.device)
        if finite:  # in all processes, or none may enter the gradients' exchange
            (losses.total / count).backward()
        return losses.terms, finite


def noise_generator(seed: int, step: int, index: int) -> torch.Generator:
    """The denoising noise's generator: a pure function of its place, so resume needs no state."""
    words = np.random.SeedSequence((seed, step, index, rank())).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))


class StepMeter:
    """Means since the last report."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._clear()

    def _clear(self) -> None:
        self.steps = 0
        self._images = 0
        self._seconds = 0.0
        self._losses: dict[str, Tensor] = {}
        self._last: StepResult | None = None

    def add(self, result: StepResult, images: int, seconds: float) -> None:
        """Take in one step that trained on `images` images in `seconds`."""
        self.steps += 1
        self._images += images
        self._seconds += seconds
        self._last = result
        for name, value in result.losses.items():
            self._losses[name] = self._losses.get(name, torch.zeros_like(value)) + value

    def report(self, counters: Counters, plan: Plan, progress: float, elapsed_s: float) -> StepDone:
        """The event for the steps since the last report."""
        assert self._last is not None
        if plan.steps is not None:
            eta_s = (plan.steps - counters.step) * self._seconds / self.steps
        else:
            eta_s = elapsed_s / max(progress, 1e-6) - elapsed_s
        gpu = self._device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(self._device) / 2**20 if gpu else peak_memory_mb()
        event = StepDone(
            step=counters.step,
            steps_total=plan.steps,
            epoch=counters.epoch,
            progress=progress,
            losses={
                "total" if name == "loss" else name: float(value) / self.steps
                for name, value in self._losses.items()
            },
            lr=self._last.lr,
            grad_norm=self._last.grad_norm,
            images_per_s=self._images / max(self._seconds, 1e-9),
            memory_mb=memory,
            eta_s=max(0.0, eta_s),
        )
        self._clear()
        return event
