"""One optimiser step, and the meter that turns steps into reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dino_core.config import ResolvedConfig
from dino_core.data.batching import Batch
from dino_core.engine.ema import Ema
from dino_core.engine.events import StepDone
from dino_core.engine.feature_cache import FeatureCache
from dino_core.engine.memory import peak_memory_mb
from dino_core.engine.optimizer import set_lr
from dino_core.engine.parallel.collectives import (
    all_reduce_mean,
    exchange,
    is_distributed,
    most,
    rank,
    sums,
    world_size,
    wrap,
)
from dino_core.engine.planning.plan import Plan
from dino_core.engine.schedule import lr_factor
from dino_core.engine.setup import training_mode
from dino_core.engine.state import Counters, seed_step
from dino_core.errors import is_out_of_memory
from dino_core.losses.criterion import Criterion, Losses
from dino_core.models.dino import Dino


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    Attributes:
        finite: Whether loss and gradients were finite; the weights must not be updated if not.
        images: How many images of this process took part.
        empty: Whether none took part in any process; the weights must not be updated then.
        loss: The total, averaged over the processes; not finite where it was so in any.
        losses: Detached scalars, means over the accumulated batches.
        grad_norm: Before clipping.
        lr: The head's rate.
        unreadable: Whether any process met images that it could not read.
    """

    finite: bool
    images: int
    empty: bool
    loss: float
    losses: dict[str, Tensor]
    grad_norm: float
    lr: float
    unreadable: bool = False

    @property
    def usable(self) -> bool:
        """Whether the gradients may update the weights."""
        return self.finite and not self.empty


class OutOfMemoryTogether(MemoryError):
    """A forward pass of some process found too little memory, and all left it, at the same one."""


class Stepper:
    """Forward, backward and update of one model.

    Attributes:
        cache: Keeps the backbone's maps, where it is frozen and they shall be kept.
        lr_scale: Factor of every rate, besides the schedule's.
        parts: Each batch goes through the network in so many parts, for want of memory.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        model: Dino,
        ema: Ema[Dino] | None,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config = config
        self.model, self.ema, self.optimizer = model, ema, optimizer
        self.device, self.dtype = device, dtype
        self.criterion = Criterion(config.loss, config.class_loss)
        self.lr_scale = 1.0
        self.parts = 1
        self.cache: FeatureCache | None = None
        self._wrapped = wrap(model, device)
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    @property
    def autocasts(self) -> bool:
        return self.dtype != torch.float32

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.autocasts)

    def step(self, batches: Sequence[Batch], step: int, progress: float) -> StepResult:
        """One whole step: `gradients`, and `update` where they can be used."""
        result = self.gradients(batches, step, progress)
        if result.usable:
            self.update()
        return result

    def gradients(self, batches: Sequence[Batch], step: int, progress: float) -> StepResult:
        """Accumulate the gradients of `batches`; the weights stay, so it can be done again.

        Args:
            batches: Micro-batches; the loss is their mean.
            step: Steps done before this one.
            progress: Fraction of the run that is done.

        Raises:
            OutOfMemoryTogether: of several processes with a whole model each.
        """
        training_mode(self.model, self.config.freeze)
        self.optimizer.zero_grad(set_to_none=True)
        factor = lr_factor(self.config, step, progress, self.config.warmup_steps) * self.lr_scale
        set_lr(self.optimizer, factor)
        seed_step(self.config.seed, step, rank())
        losses: dict[str, Tensor] = {}
        finite = True
        boxes, images, unreadable = self._counts(batches)
        for index, batch in enumerate(batches):
            if self.cache is not None:
                with self._autocast():
                    batch = self.cache.with_features(batch, self.model.backbone, self.device)
            parts = batch.split(self.parts, blanks=is_distributed())  # as many in all processes
            for number, part in enumerate(parts):
                last = index + 1 == len(batches) and number + 1 == len(parts)
                place = (self.config.seed, step, index * self.parts + number)
                with exchange(self._wrapped, last):
                    terms, finite = self._accumulate(part, boxes[index], place, len(batches))
                for name, value in terms.items():
                    losses[name] = losses.get(name, torch.zeros_like(value)) + value / len(batches)
                if not finite:
                    break
            if not finite:
                break
        norm = self._clip()
        return StepResult(
            finite=finite and bool(np.isfinite(norm)),  # equal in all: gradients are averaged
            images=sum(len(batch.image_ids) for batch in batches),
            empty=images == 0,
            loss=float(all_reduce_mean(losses["loss"])),
            losses=losses,
            grad_norm=norm,
            lr=self.config.lr * factor,
            unreadable=unreadable > 0,
        )

    def _clip(self) -> float:
        """Limit the gradients' norm, which is returned as it was."""
        norm = nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm)
        total = getattr(norm, "full_tensor", None)  # of parts, where the weights are spread
        return float(norm if total is None else total())

    def update(self) -> None:
        """Move the weights and their average by the gradients."""
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()

    def halve(self, batches: Sequence[Batch]) -> bool:
        """Let batches go through in twice as many parts; False where nothing is left to halve.

        Several processes must do it together.
        """
        if self.parts >= most(max(len(batch) for batch in batches), self.device):
            return False
        self.parts *= 2
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def _counts(self, batches: Sequence[Batch]) -> tuple[list[float], float, float]:
        """Boxes of each batch (means over the processes), and images read and not read in all."""
        boxes = [float(sum(len(target.labels) for target in b.targets)) for b in batches]
        images = sum(len(batch.image_ids) for batch in batches)
        unreadable = sum(len(batch.unreadable) for batch in batches)
        *summed, images_in_all, unreadable_in_all = sums(
            [*boxes, float(images), float(unreadable)], self.device
        )
        return [count / world_size() for count in summed], images_in_all, unreadable_in_all

    def _accumulate(
        self, batch: Batch, boxes: float, place: tuple[int, int, int], count: int
    ) -> tuple[dict[str, Tensor], bool]:
        """Forward and backward of (a part of) a micro-batch.

        Args:
            batch: The images; a blank one takes part, as other processes wait, with weight 0.
            boxes: Of the whole micro-batch, which the loss is divided by.
            place: Seed, step and index, which decide the denoising noise.
            count: Micro-batches in the step.

        Returns: Its detached loss terms, and whether they are finite in all processes.

        Raises:
            OutOfMemoryTogether: of several processes with a whole model each.
        """
        losses: Losses | None = None
        try:
            losses = self._losses(batch, boxes, place)
        except Exception as error:
            # Nobody else may wait in the midst of what this process has left: not the others'
            # forward passes, unless weights are spread; but their backward passes do.
            whole = isinstance(self._wrapped, nn.parallel.DistributedDataParallel)
            if not (whole and is_out_of_memory(error)):
                raise
        finite = losses is not None and bool(torch.isfinite(losses.total))
        short, infinite = sums([float(losses is None), float(not finite)], self.device)
        if losses is None or short:
            raise OutOfMemoryTogether("out of memory in one of several processes")
        weight = 1.0 if batch.image_ids else 0.0
        if not infinite:  # in all processes, or none may enter the gradients' exchange
            (losses.total * weight / count).backward()  # type: ignore[no-untyped-call]
        return {name: value * weight for name, value in losses.terms.items()}, not infinite

    def _losses(self, batch: Batch, boxes: float, place: tuple[int, int, int]) -> Losses:
        """Those of a forward pass; arguments as of `_accumulate`."""
        batch = batch.to(self.device)
        with self._autocast():
            noise = noise_generator(*place)
            output = self._wrapped(
                batch.images, batch.padding_mask, batch.targets, noise, features=batch.features
            )
        losses: Losses = self.criterion(output, batch.targets, boxes)
        return losses


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

    def add(self, result: StepResult, seconds: float) -> None:
        """Take in one step that took `seconds`."""
        self.steps += 1
        self._images += result.images * world_size()
        self._seconds += seconds
        self._last = result
        for name, value in result.losses.items():
            self._losses[name] = self._losses.get(name, torch.zeros_like(value)) + value

    def report(self, counters: Counters, plan: Plan, progress: float, elapsed_s: float) -> StepDone:
        """The event for the steps since the last report; losses are means over the processes."""
        assert self._last is not None
        if plan.steps is not None:
            eta_s = (plan.steps - counters.step) * self._seconds / self.steps
        else:
            eta_s = elapsed_s / max(progress, 1e-6) - elapsed_s
        gpu = self._device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(self._device) / 2**20 if gpu else peak_memory_mb()
        names = ["total" if name == "loss" else name for name in self._losses]
        means = all_reduce_mean(torch.stack(list(self._losses.values())) / self.steps)
        event = StepDone(
            step=counters.step,
            steps_total=plan.steps,
            epoch=counters.epoch,
            progress=progress,
            losses=dict(zip(names, means.tolist(), strict=True)),
            lr=self._last.lr,
            grad_norm=self._last.grad_norm,
            images_per_s=self._images / max(self._seconds, 1e-9),
            memory_mb=memory,
            eta_s=max(0.0, eta_s),
        )
        self._clear()
        return event
