"""Tries the worst batch that a run can meet before the first step, for its memory and its speed.

The trial is a forward and backward pass of random images of that shape with that many boxes. It
leaves weights, buffers and modes as they were, and each step seeds its own random numbers, so a run
with the trial equals a run without it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dino_core.config import ResolvedConfig
from dino_core.data.batching import Batch, ShapeBatches, padded_size
from dino_core.engine.memory import free_memory_mb, peak_memory_mb, resident_memory_mb
from dino_core.engine.model_setup import training_mode
from dino_core.errors import is_out_of_memory
from dino_core.losses.criterion import Criterion
from dino_core.models.denoising import denoising_layout
from dino_core.models.dino import Dino
from dino_core.targets import Target

_LOOK_AT_IMAGES = 20_000  # about this many augmented images are searched for the largest batch
_MOST_EPOCHS = 10
_USABLE = 0.9  # usable share of the free memory: the estimate is not exact
_UPDATE = 1.05  # time of a whole step over forward and backward alone, measured on dino-nano
_BYTES = 4  # per float32 number: weights, gradients and moments are kept in float32
_MIB = 2**20


@dataclass(frozen=True)
class WorstBatch:
    """The batch that takes the most memory.

    Attributes:
        images: Number of images.
        size_hw: Padded height and width in pixels.
        boxes: Boxes per image.
        queries: Denoising queries per image.
        mean_share: Pixels of an average batch as a fraction of this one's.
    """

    images: int
    size_hw: tuple[int, int]
    boxes: int
    queries: int
    mean_share: float


@dataclass(frozen=True)
class Trial:
    """The result of a successful trial.

    Attributes:
        worst: The batch.
        at_a_time: Number of its images that went through the network at a time.
        peak_mb: Memory of the process, or of the GPU, with everything a step needs, in MiB.
        limit_mb: Memory that it may use, in MiB; None where the system does not report it.
        step_s: Expected seconds of an average optimizer step.
    """

    worst: WorstBatch
    at_a_time: int
    peak_mb: float
    limit_mb: float | None
    step_s: float

    @property
    def parts(self) -> int:
        """Number of parts in which a batch goes through the network."""
        return -(-self.worst.images // self.at_a_time)


def worst_batch(sampler: ShapeBatches, boxes: Sequence[int], dn_number: int) -> WorstBatch:
    """The largest batch of the first epochs, with the number of boxes that makes most queries.

    Args:
        sampler: The run's batches.
        boxes: The numbers of boxes that a sample may have.
        dn_number: The model's setting. Denoising queries come in groups, as many as fit, so the
            image with the most boxes need not have the most queries.
    """
    # Random sizes differ from epoch to epoch. Small data sets are searched for several epochs,
    # large ones have seen most sizes after one.
    epochs = min(max(_LOOK_AT_IMAGES // sampler.count, 1), _MOST_EPOCHS)
    shapes = [shape for epoch in range(epochs) for shape in _shapes(sampler, epoch)]
    # Memory grows with the number of pixels, whatever their shape.
    images, height, width = max(shapes, key=lambda shape: shape[0] * shape[1] * shape[2])
    pixels = [n * h * w for n, h, w in shapes]
    # One image with this many boxes decides for the whole batch (ALGORITHM 21).
    queries, most = max((denoising_layout([n], dn_number).num_queries, n) for n in set(boxes))
    share = sum(pixels) / len(pixels) / (images * height * width)
    return WorstBatch(images, (height, width), most, queries, share)


def _shapes(sampler: ShapeBatches, epoch: int) -> Iterator[tuple[int, int, int]]:
    """Images, padded height and padded width of each batch of an epoch."""
    sizes = sampler.sizes_of_epoch(epoch)
    for batch in sampler.batches(epoch):
        height, width = padded_size(sizes[i] for i in batch)
        yield len(batch), height, width


@dataclass(frozen=True)
class Probe:
    """Tries batches on a model.

    Attributes:
        model: On its device, before it is wrapped for several processes.
        device: The model's device.
        dtype: Data type inside the network.
    """

    model: Dino
    device: torch.device
    dtype: torch.dtype

    def try_out(self, config: ResolvedConfig, worst: WorstBatch, at_a_time: int) -> Trial | None:
        """Forward and backward of a part of the worst batch; None where it does not fit.

        Args:
            config: The recipe.
            worst: The batch.
            at_a_time: Images at a time, at most `worst.images`.
        """
        criterion = Criterion(config.loss, config.class_loss)
        before = self._used_mb()
        free = free_memory_mb(self.device)
        # What the process has already counts as available, as it will reuse it.
        limit = None if free is None else before + free
        later = _later_mb(self.model, config.ema)
        with _untouched(self.model):
            training_mode(self.model, config.freeze)
            try:
                spent = self._spent(criterion, worst, at_a_time, before, later, limit)
            # torch raises plain RuntimeErrors where a CPU's memory is short.
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                return None
        if spent is None or (limit is not None and spent.peak_mb + later > limit):
            return None
        # The trial's time is that of `at_a_time` of the largest images, an average step's is
        # smaller by their share of pixels.
        passes = config.accumulate * config.batch / at_a_time
        step_s = spent.seconds * passes * worst.mean_share * _UPDATE
        return Trial(worst, at_a_time, spent.peak_mb + later, limit, step_s)

    def _spent(
        self,
        criterion: Criterion,
        worst: WorstBatch,
        at_a_time: int,
        before: float,
        later: float,
        limit: float | None,
    ) -> _Spent | None:
        """Time and memory of `at_a_time` images; None where they would not fit.

        A single image goes first. It warms up, and from its memory that of all images is estimated:
        on a CPU they cannot simply be tried, because the system ends a process that takes too much.
        """
        with _saved_mb(self.model) as saved:
            spent = self._pass(criterion, _batch(worst, 1))
        # What is saved for the backward pass grows with the images; weights and gradients do not.
        if limit is not None:
            gradients = trainable(self.model) * _BYTES / _MIB  # once, and not for each image
            each = max(sum(saved), spent.peak_mb - before - gradients)
            if gradients + later + each * at_a_time > (limit - before) * _USABLE:
                return None
        if at_a_time > 1:
            spent = self._pass(criterion, _batch(worst, at_a_time))
        if self.device.type == "cuda":
            # The first pass of a shape includes the search of cuDNN for kernels: its seconds do not
            # count, but the memory of its workspace does.
            again = self._pass(criterion, _batch(worst, at_a_time))
            spent = _Spent(again.seconds, max(spent.peak_mb, again.peak_mb))
        return spent

    def _pass(self, criterion: Criterion, batch: Batch) -> _Spent:
        """One forward and backward pass."""
        model, device = self.model, self.device
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        # The operating system only reports the highest value ever, so a pass below it is invisible.
        before = peak_memory_mb()
        started = time.monotonic()
        batch = batch.to(device)
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            output = model(batch.images, batch.padding_mask, batch.targets, torch.Generator())
        criterion(output, batch.targets).total.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            seconds = time.monotonic() - started
            return _Spent(seconds, torch.cuda.max_memory_allocated(device) / _MIB)
        # The process's peak counts, unless something before the pass was larger. Then it is what
        # the process still holds, which hardly shrinks where freed memory is kept.
        peak = peak_memory_mb()
        seconds = time.monotonic() - started
        return _Spent(seconds, peak if peak > before else resident_memory_mb())

    def _used_mb(self) -> float:
        if self.device.type == "cpu":
            return resident_memory_mb()
        return (
            torch.cuda.memory_allocated(self.device) / _MIB if self.device.type == "cuda" else 0.0
        )


@dataclass(frozen=True)
class _Spent:
    """What a pass took: its seconds, and the most memory that was held during it, in MiB."""

    seconds: float
    peak_mb: float


@contextmanager
def _saved_mb(model: nn.Module) -> Iterator[list[float]]:
    """MiB of each tensor that forward passes inside keep for the backward, without weights.

    They are counted because a process that once held more memory does not grow by them.
    """
    seen = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    sizes: list[float] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Views and tensors that are saved several times share their memory.
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            sizes.append(storage.nbytes() / _MIB)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield sizes


def _batch(worst: WorstBatch, images: int) -> Batch:
    """Random images and boxes, the same each time."""
    # A generator of its own, so that the trial takes no numbers from the run.
    random = torch.Generator().manual_seed(0)
    height, width = worst.size_hw
    targets = [
        Target(
            torch.zeros(worst.boxes, dtype=torch.int64),
            0.1 + 0.4 * torch.rand((worst.boxes, 4), generator=random),
        )
        for _ in range(images)
    ]
    return Batch(
        torch.randn((images, 3, height, width), generator=random),
        torch.zeros((images, height, width), dtype=torch.bool),
        targets,
        list(range(images)),
    )


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Restore the modes and buffers of a model and drop its gradients; weights must not change."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        if torch.cuda.is_available():
            # Another process on the same GPU could not use what this one caches.
            torch.cuda.empty_cache()


def trainable(model: nn.Module) -> int:
    """Numbers of a model that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _later_mb(model: nn.Module, ema: bool) -> float:
    """Memory that the first step adds: the optimizer's two moments and the average's weights."""
    average = sum(p.numel() for p in model.parameters()) if ema else 0
    return (2 * trainable(model) + average) * _BYTES / _MIB
