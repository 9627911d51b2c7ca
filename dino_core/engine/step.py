"""One optimizer step: gradients of a few batches, and the update of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dino_core.config import ResolvedConfig
from dino_core.data.batching import Batch
from dino_core.engine.ema import Ema
from dino_core.engine.feature_cache import FeatureCache
from dino_core.engine.model_setup import training_mode
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
from dino_core.engine.schedule import lr_factor
from dino_core.engine.state import seed_of, seed_step
from dino_core.errors import is_out_of_memory
from dino_core.losses.criterion import Criterion, Losses
from dino_core.models.dino import Dino


@dataclass(frozen=True)
class StepResult:
    """The gradients of one step, in numbers.

    Attributes:
        finite: Whether loss and gradients were finite; if not, the weights must not be updated.
        images: Number of this process's images that took part.
        empty: Whether no image took part in any process; the weights must not be updated then.
        loss: Total loss, averaged over the processes; not finite where it was not in one of them.
        losses: Detached scalars, means over the accumulated batches of this process.
        grad_norm: Gradient norm before clipping.
        lr: Learning rate of the head.
        unreadable: Whether an image could not be read in any process.
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
    """A forward pass ran out of memory in one process, and all processes left it together."""


@dataclass(frozen=True)
class _Part:
    """What goes through the network at a time: a batch or, where memory is short, a part of it.

    Attributes:
        batch: The images; in a blank part, one image without an id, which must not count.
        boxes: Boxes of the whole batch, averaged over the processes: the loss is divided by them.
        number: Position in the step, which decides the denoising noise.
        last: Whether it is the last part of the step, after which gradients are exchanged.
    """

    batch: Batch
    boxes: float
    number: int
    last: bool


class Stepper:
    """Forward, backward and update of one model.

    Attributes:
        cache: Keeps the features of a frozen backbone; None where they are computed every time.
        lr_scale: Factor of all learning rates, besides the schedule's.
        parts: Number of parts in which each batch goes through the network, to save memory.
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
        """Whether the network computes in another data type than its weights have."""
        return self.dtype != torch.float32

    @property
    def shipped(self) -> Dino:
        """The model that is evaluated and saved: the average, or the live one without it."""
        return self.ema.model if self.ema is not None else self.model

    def gradients(self, batches: Sequence[Batch], step: int, progress: float) -> StepResult:
        """Accumulate the gradients of `batches`. The weights stay, so it can be done again.

        Args:
            batches: The loss is their mean.
            step: Optimizer steps done before this one.
            progress: Fraction of the run that is done.

        Raises:
            OutOfMemoryTogether: memory was short in one of several processes with a whole model.
        """
        # Each attempt of a step begins from the same state: no gradients, the learning rate and the
        # random numbers of this step. So a repetition after a memory shortage equals a first
        # attempt.
        training_mode(self.model, self.config.freeze)
        self.optimizer.zero_grad(set_to_none=True)
        factor = lr_factor(self.config, step, progress, self.config.warmup_steps) * self.lr_scale
        set_lr(self.optimizer, factor)
        seed_step(self.config.seed, step, rank())
        # The number of boxes has to be known over all processes and parts before the first backward
        # pass, because every part's loss is divided by it.
        boxes, images, unreadable = self._counts(batches)
        losses, finite = self._accumulate(batches, boxes, step)
        norm = self._clip()
        return StepResult(
            # The norm is equal in all processes, since gradients are averaged over them.
            finite=finite and math.isfinite(norm),
            images=sum(len(batch.image_ids) for batch in batches),
            empty=images == 0,
            loss=float(all_reduce_mean(losses["total"])),
            losses=losses,
            grad_norm=norm,
            lr=self.config.lr * factor,
            unreadable=unreadable > 0,
        )

    def update(self) -> None:
        """Move the weights along the gradients, and their average after them."""
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()

    def halve(self, batches: Sequence[Batch]) -> bool:
        """Let batches go through in twice as many parts; False where nothing is left to halve.

        Several processes must do it together.
        """
        # All processes must have the same number of parts, since each part is a round of
        # collectives.
        if self.parts >= most(max(len(batch) for batch in batches), self.device):
            return False
        # The gradients of the failed attempt are memory that the next one needs.
        self.parts *= 2
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def _counts(self, batches: Sequence[Batch]) -> tuple[list[float], float, float]:
        """Mean boxes of each batch over the processes, and total images read and not read."""
        boxes = [float(sum(len(target.labels) for target in b.targets)) for b in batches]
        images = sum(len(batch.image_ids) for batch in batches)
        unreadable = sum(len(batch.unreadable) for batch in batches)
        # One exchange for all the numbers, because each costs a round trip between the machines.
        *summed, total_images, total_unreadable = sums(
            [*boxes, float(images), float(unreadable)], self.device
        )
        # The mean, not the sum: DDP averages gradients over the processes, which divides by their
        # number a second time (ALGORITHM 24).
        return [count / world_size() for count in summed], total_images, total_unreadable

    def _accumulate(
        self, batches: Sequence[Batch], boxes: Sequence[float], step: int
    ) -> tuple[dict[str, Tensor], bool]:
        """Forward and backward of all parts of a step, up to one whose loss is not finite.

        Returns:
            The detached loss terms, and whether they are finite in all processes.
        """
        losses: dict[str, Tensor] = {}
        for part in self._parts(batches, boxes):
            # Gradients of earlier parts stay in this process and are exchanged together with the
            # last ones.
            with exchange(self._wrapped, part.last):
                terms, finite = self._backward(part, step, len(batches))
            for name, value in terms.items():
                # The parts of a batch add up to its loss, because each is divided by the boxes of
                # the whole batch. Only the number of batches is left to divide by.
                losses[name] = losses.get(name, torch.zeros_like(value)) + value / len(batches)
            # The step will not be used. The remaining parts would only add NaN to the gradients.
            if not finite:
                return losses, False
        return losses, True

    def _parts(self, batches: Sequence[Batch], boxes: Sequence[float]) -> Iterator[_Part]:
        """The parts of a step, each made when it is its turn: features need memory, too."""
        for index, batch in enumerate(batches):
            if self.cache is not None:
                with self._autocast():
                    batch = self.cache.with_features(batch, self.model.backbone, self.device)
            # A process with fewer images fills up with blanks: all must do as many passes.
            parts = batch.split(self.parts, blanks=is_distributed())
            for number, part in enumerate(parts):
                last = index + 1 == len(batches) and number + 1 == len(parts)
                yield _Part(part, boxes[index], index * self.parts + number, last)

    def _backward(self, part: _Part, step: int, count: int) -> tuple[dict[str, Tensor], bool]:
        """Forward and backward of one part of `count` batches.

        All processes agree on each stage before the next: a process that skipped a backward pass
        would leave the others waiting in its gradient exchange.

        Returns:
            Its detached loss terms, and whether they are finite in all processes.
        """
        # The two checks below are one exchange, in every process, whatever happened in this one.
        losses = self._losses_if_memory_suffices(part, step)
        finite = losses is not None and bool(torch.isfinite(losses.total))
        short, infinite = sums([float(losses is None), float(not finite)], self.device)
        # Raised in the processes that had enough memory, too: they must repeat the step as well.
        if losses is None or short:
            raise OutOfMemoryTogether("out of memory in one of several processes")
        # A blank part takes part, because the other processes wait for it, but with weight 0.
        weight = 1.0 if part.batch.image_ids else 0.0
        if not infinite:
            (losses.total * weight / count).backward()  # type: ignore[no-untyped-call]
        return {name: value * weight for name, value in losses.terms.items()}, not infinite

    def _losses_if_memory_suffices(self, part: _Part, step: int) -> Losses | None:
        """The losses of a forward pass; None where memory was short and all must be asked."""
        try:
            return self._losses(part, step)
        except Exception as error:
            # With a whole model in each process, forward passes exchange nothing, so this process
            # can still reach the next collective and warn the others, which would otherwise block
            # in their backward pass. Sharded weights are gathered in the forward pass itself:
            # there the error must end this process.
            whole = isinstance(self._wrapped, nn.parallel.DistributedDataParallel)
            if not (whole and is_out_of_memory(error)):
                raise
            return None

    def _losses(self, part: _Part, step: int) -> Losses:
        batch = part.batch.to(self.device)
        # The seed is the step's, not the attempt's, so that repeating a step gives the same noise.
        with self._autocast():
            noise = noise_generator(self.config.seed, step, part.number)
            output = self._wrapped(
                batch.images, batch.padding_mask, batch.targets, noise, features=batch.features
            )
        # Outside of autocast: matching and losses are computed in float32.
        losses: Losses = self.criterion(output, batch.targets, part.boxes)
        return losses

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.autocasts)

    def _clip(self) -> float:
        """Clip the gradients. Returns their norm before that."""
        # The norm is that of the gradient averaged over all processes, as in a single one. A norm
        # that is not finite makes all gradients not finite, and such a step is not used.
        norm = nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm)
        full = getattr(norm, "full_tensor", None)  # sharded gradients give a part of the norm each
        return float(norm if full is None else full())


def noise_generator(seed: int, step: int, number: int) -> torch.Generator:
    """The generator of the denoising noise: a function of its position, so resume needs no state.

    Args:
        seed: The run's seed.
        step: Optimizer steps done before this one.
        number: Position of the part in the step.
    """
    # A generator on the CPU, so that a run on a GPU has the noise of a run on a CPU. The rank makes
    # the noise of the processes differ.
    return torch.Generator().manual_seed(seed_of(seed, step, number, rank()))
