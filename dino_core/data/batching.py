"""Padded batches of samples, and which images form them: similar shapes, in a repeatable order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_core.data.dataset import Sample, Unreadable
from dino_core.data.seeding import generator
from dino_core.errors import ConfigError
from dino_core.processing import preprocess as processing
from dino_core.targets import Target, to_device

STRIDE = 32  # batches are padded to multiples of this, so that few different shapes occur
# Sorting the whole epoch would make the same images meet in every epoch; chunks of a shuffled order
# keep batches random and still save most of the padding.
_CHUNK_BATCHES = 32  # images are grouped by size within chunks of this number of batches
_Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """B samples, padded to one size; images that cannot be read are left out.

    If no image could be read, the batch is one blank image without an id, which must not count.

    Attributes:
        images: (B, 3, H, W) float32, normalized, zeros at the bottom and right.
        padding_mask: (B, H, W) bool, True = padding.
        targets: B targets.
        image_ids: B ids; empty if no image could be read.
        unreadable: The images that were left out, or not mixed in.
        features: Maps (B, c, h, w) of these images from the cache of a frozen backbone; `images` is
            then empty. None without the cache.
        place: Key of the maps in that cache: the view and the batch's number in it.
    """

    images: Tensor
    padding_mask: Tensor
    targets: list[Target]
    image_ids: list[int]
    unreadable: tuple[Unreadable, ...] = ()
    features: tuple[Tensor, ...] | None = None
    place: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> Batch:
        features = self.features
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            padding_mask=self.padding_mask.to(device, non_blocking=True),
            targets=to_device(self.targets, device),
            features=features and tuple(f.to(device, non_blocking=True) for f in features),
        )

    def split(self, parts: int, blanks: bool = False) -> list[Batch]:
        """The same samples with the same padding, in at most `parts` batches of about equal size.

        With `blanks` there are always `parts` batches: the missing ones are one blank image each.
        """
        # Rounded up, so there are at most `parts` of them and only the last one is smaller.
        size = -(-len(self) // parts)
        cuts = [slice(start, start + size) for start in range(0, len(self), size)]
        return [
            Batch(
                self.images[c],
                self.padding_mask[c],
                self.targets[c],
                self.image_ids[c],
                features=None if self.features is None else tuple(f[c] for f in self.features),
            )
            for c in cuts
        ] + [self._blank() for _ in range(parts - len(cuts) if blanks else 0)]

    def _blank(self) -> Batch:
        """One image without an id or boxes."""
        return Batch(
            # A real padding mask, since one that is all padding would have valid ratios of zero and
            # NaN in the geometry. Without an id, the stepper gives the part weight 0.
            torch.zeros_like(self.images[:1]),
            self.padding_mask[:1],
            [self.targets[0].empty()],
            [],
            features=None if self.features is None else tuple(f[:1] for f in self.features),
        )

    def pin_memory(self) -> Batch:
        """The batch with images and mask in page-locked memory; DataLoader calls this."""
        return replace(
            # Targets are small, and `to_device` joins them before copying.
            self,
            images=self.images.pin_memory(),
            padding_mask=self.padding_mask.pin_memory(),
        )


def padded_size(sizes_hw: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The largest height and width of the images of a batch, rounded up to `STRIDE`."""
    heights, widths = zip(*sizes_hw, strict=True)
    return -(-max(heights) // STRIDE) * STRIDE, -(-max(widths) // STRIDE) * STRIDE


def collate(samples: Sequence[Sample | Unreadable]) -> Batch:
    """Pad samples to the largest height and width among them, rounded up to `STRIDE`."""
    remarks = [s if isinstance(s, Unreadable) else s.without for s in samples]
    unreadable = tuple(remark for remark in remarks if remark is not None)
    readable = [sample for sample in samples if isinstance(sample, Sample)]
    arrays = [sample.image.numpy() for sample in readable]
    targets = [sample.target for sample in readable]
    # A network cannot take an empty batch, and all processes must do as many passes.
    if not readable:
        arrays = [np.zeros((3, *unreadable[0].size_hw), np.float32)]
        targets = [Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))]
    size_hw = padded_size((array.shape[1], array.shape[2]) for array in arrays)
    images, padding_mask = processing.collate(arrays, size_hw)
    return Batch(
        torch.from_numpy(images),
        torch.from_numpy(padding_mask),
        targets,
        [sample.image_id for sample in readable],
        unreadable,
    )


@dataclass(frozen=True)
class ShapeBatches:
    """Which images form which batch in which epoch; a function of (seed, epoch) only.

    The order is shuffled, chunks of it are sorted by size and cut into batches, and the batches are
    shuffled. Each rank takes every `world_size`-th batch, and all ranks take the same number.

    Attributes:
        count: Number of images.
        sizes_of_epoch: Maps an epoch to the (height, width) that each image will have in it.
        batch_size: Images per batch.
        seed: Random seed of the order.
        shuffle: False keeps the images in order and does not group them by size.
        drop_last: Leave out a last, smaller batch, unless it is the only one.
        rank: Number of this process.
        world_size: Number of processes.
    """

    count: int
    sizes_of_epoch: Callable[[int], Sequence[tuple[int, int]]]
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch is {self.batch_size}, expected at least 1")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank {self.rank} is not in a world of {self.world_size}")

    def __len__(self) -> int:
        """Number of batches of one rank in one epoch."""
        count, size = self.count, self.batch_size
        batches = count // size if self.drop_last and count >= size else -(-count // size)
        return (batches + self.world_size - 1) // self.world_size

    def batches(self, epoch: int) -> list[list[int]]:
        """The indices of the images in each of this rank's batches."""
        if not self.shuffle:
            batches = self._cut(np.arange(self.count))
        else:
            rng = generator(self.seed, epoch)
            batches = self._cut(self._grouped(rng, epoch))
            # After sorting, neighbors have similar sizes. Shuffled batches keep the sizes of
            # successive steps independent, and deal large and small ones to the ranks alike.
            batches = [batches[i] for i in rng.permutation(len(batches))]
        # Ranks wait for each other in every step, so all need the same number of batches.
        missing = -len(batches) % self.world_size
        # Some batches come twice, which is harmless in training.
        batches += [batches[i % len(batches)] for i in range(missing)]
        return batches[self.rank :: self.world_size]

    def _grouped(self, rng: np.random.Generator, epoch: int) -> _Indices:
        sizes = np.array(self.sizes_of_epoch(epoch), np.int64).reshape(-1, 2)  # (N, 2)
        order = rng.permutation(self.count)
        chunk = self.batch_size * _CHUNK_BATCHES
        parts = [order[start : start + chunk] for start in range(0, self.count, chunk)]
        return np.concatenate([_by_size(part, sizes, self.batch_size) for part in parts] or [order])

    def _cut(self, order: _Indices) -> list[list[int]]:
        size = self.batch_size
        batches = [order[i : i + size].tolist() for i in range(0, len(order), size)]
        if self.drop_last and len(batches) > 1 and len(batches[-1]) < size:
            batches.pop()
        return batches


def _by_size(indices: _Indices, sizes_hw: NDArray[np.int64], batch_size: int) -> _Indices:
    """The indices, reordered so that batches cut from them hold images of similar size.

    They are split in two, at a whole batch, along the side that differs most, and so is each half.
    """
    if len(indices) <= batch_size:
        return indices
    axis = int(np.ptp(sizes_hw[indices], axis=0).argmax())
    indices = indices[np.argsort(sizes_hw[indices, axis], kind="stable")]
    # A multiple of the batch size, or batches cut later would straddle both halves.
    half = max(1, -(-len(indices) // batch_size) // 2) * batch_size
    return np.concatenate(
        [
            _by_size(indices[:half], sizes_hw, batch_size),
            _by_size(indices[half:], sizes_hw, batch_size),
        ]
    )
