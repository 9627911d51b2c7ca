"""The worst batch that a run can meet, tried before the first step: memory, and the speed.

Forward and backward of random pictures of that shape with that many boxes. Weights, buffers and
modes are afterwards as before, and each step seeds its own random numbers, so that a run with it
equals a run without it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dino_core.config import ResolvedConfig
from dino_core.data.batching import STRIDE, Batch, ShapeBatches
from dino_core.engine.memory import free_memory_mb, peak_memory_mb, resident_memory_mb
from dino_core.engine.setup import training_mode
from dino_core.errors import is_out_of_memory
from dino_core.losses.criterion import Criterion
from dino_core.models.denoising import denoising_layout
from dino_core.models.dino import Dino
from dino_core.targets import Target

_LOOK_AT_IMAGES = 20_000  # sizes of about so many augmented images are looked at
_MOST_EPOCHS = 10
_USABLE = 0.9  # share of the free memory: what is estimated here is not exact
_UPDATE = 1.05  # a step with its update over forward and backward alone, measured on dino-nano
_BYTES = 4  # of a float32, in which weights, gradients and moments are kept


@dataclass(frozen=True)
class WorstBatch:
    """The batch that takes most memory.

    Attributes:
        images: Images in it.
        size_hw: Their padded height and width.
        boxes: Boxes of each.
        queries: Denoising queries of each.
        mean_share: Pixels of a mean batch over this one's.
    """

    images: int
    size_hw: tuple[int, int]
    boxes: int
    queries: int
    mean_share: float


@dataclass(frozen=True)
class Trial:
    """What came of trying it.

    Attributes:
        worst: The batch.
        at_a_time: Images of it that went through at a time.
        peak_mb: Memory of the process, or of the GPU, with all that a step needs, in MiB.
        limit_mb: What it may have; None where the system does not tell.
        step_s: Seconds that a mean optimiser step is expected to take.
    """

    worst: WorstBatch
    at_a_time: int
    peak_mb: float
    limit_mb: float | None
    step_s: float

    @property
    def parts(self) -> int:
        """In how many parts a batch goes through."""
        return -(-self.worst.images // self.at_a_time)


def worst_batch(sampler: ShapeBatches, boxes: Sequence[int], dn_number: int) -> WorstBatch:
    """The largest shape of the first epochs' batches, with the boxes that make most queries.

    Args:
        sampler: The run's batches.
        boxes: How many boxes a sample may have.
        dn_number: The model's; the queries are not most where the boxes are.
    """
    epochs = min(max(_LOOK_AT_IMAGES // sampler.count, 1), _MOST_EPOCHS)
    shapes = [shape for epoch in range(epochs) for shape in _shapes(sampler, epoch)]
    images, height, width = max(shapes, key=lambda shape: shape[0] * shape[1] * shape[2])
    pixels = [n * h * w for n, h, w in shapes]
    queries, most = max((denoising_layout([n], dn_number).num_queries, n) for n in set(boxes))
    share = sum(pixels) / len(pixels) / (images * height * width)
    return WorstBatch(images, (height, width), most, queries, share)


def _shapes(sampler: ShapeBatches, epoch: int) -> Iterator[tuple[int, int, int]]:
    """Images, padded height and padded width of each batch."""
    sizes = sampler.sizes_of_epoch(epoch)
    for batch in sampler.batches(epoch):
        height, width = (
            -(-max(sizes[i][axis] for i in batch) // STRIDE) * STRIDE for axis in (0, 1)
        )
        yield len(batch), height, width


def try_out(
    model: Dino,
    config: ResolvedConfig,
    worst: WorstBatch,
    at_a_time: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Trial | None:
    """Forward and backward of `at_a_time` images of the worst batch; None where they do not fit.

    A single image goes first, which warms up, and from which the need of all of them is estimated:
    a CPU's memory cannot be tried out, the system ends whoever takes too much.

    Args:
        model: On its device, before it is wrapped for several processes.
        config: The recipe.
        worst: The batch.
        at_a_time: Images at a time, up to `worst.images`.
        device: The model's.
        dtype: Arithmetic inside the network.
    """
    criterion = Criterion(config.loss, config.class_loss)
    first = resident_memory_mb() if device.type == "cpu" else _allocated_mb(device)
    free = free_memory_mb(device)
    limit = None if free is None else first + free
    later = _later_mb(model, config.ema)
    with _untouched(model):
        training_mode(model, config.freeze)
        try:
            with _saved_mb(model) as saved:
                seconds, peak = _pass(model, criterion, _batch(worst, 1), device, dtype)
            if limit is not None:
                weights = _trainable(model) * _BYTES / 2**20  # gradients: once, not for each image
                each = max(sum(saved), peak - first - weights)
                if first + weights + later + each * at_a_time > first + (limit - first) * _USABLE:
                    return None
            if at_a_time > 1:
                seconds, peak = _pass(model, criterion, _batch(worst, at_a_time), device, dtype)
            if device.type == "cuda":  # the first pass of a size looks for kernels, for seconds
                seconds, _ = _pass(model, criterion, _batch(worst, at_a_time), device, dtype)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None
    if limit is not None and peak + later > limit:
        return None
    passes = config.accumulate * config.batch / at_a_time
    step_s = seconds * passes * worst.mean_share * _UPDATE
    return Trial(worst, at_a_time, peak + later, limit, step_s)


def _pass(
    model: Dino, criterion: Criterion, batch: Batch, device: torch.device, dtype: torch.dtype
) -> tuple[float, float]:
    """One forward and backward. Returns: its seconds and the memory held at most, in MiB."""
    model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = peak_memory_mb()
    started = time.monotonic()
    batch = batch.to(device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        output = model(batch.images, batch.padding_mask, batch.targets, torch.Generator())
    criterion(output, batch.targets).total.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.monotonic() - started, torch.cuda.max_memory_allocated(device) / 2**20
    # The process's peak, unless something before was larger: then what it holds still, which
    # hardly shrinks where freed memory is kept.
    peak = peak_memory_mb()
    return time.monotonic() - started, peak if peak > before else resident_memory_mb()


@contextmanager
def _saved_mb(model: nn.Module) -> Iterator[list[float]]:
    """MiB of each tensor that forward passes inside keep for the backward, weights left out.

    A process that held more before does not grow by them.
    """
    seen = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    sizes: list[float] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            sizes.append(storage.nbytes() / 2**20)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield sizes


def _batch(worst: WorstBatch, images: int) -> Batch:
    """Random pictures and boxes, the same each time."""
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
    """Whatever is done with the model inside leaves no trace but in its weights."""
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
            torch.cuda.empty_cache()


def _allocated_mb(device: torch.device) -> float:
    return torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0


def _trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _later_mb(model: nn.Module, ema: bool) -> float:
    """What comes with the first step: the optimiser's two moments, and the average's weights."""
    average = sum(p.numel() for p in model.parameters()) if ema else 0
    return (2 * _trainable(model) + average) * _BYTES / 2**20
