"""Samples into padded batches: images of like shape together, in an order that can be repeated."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from dino_core.config import PreprocessConfig
from dino_core.data.dataset import (
    DetectionDataset,
    ReadableSamples,
    Sample,
    SampleKey,
    Unreadable,
)
from dino_core.data.records import ImageRecord
from dino_core.errors import ConfigError
from dino_core.processing import preprocess as processing
from dino_core.processing.preprocess import resized_size
from dino_core.targets import Target, to_device

STRIDE = 32  # training batches are padded to multiples of it, so that few different shapes occur
_CHUNK_BATCHES = 32  # images are grouped by size within so many batches
_Indices = NDArray[np.int64]
_SEED_BITS = 0xFFFFFFFF


@dataclass(frozen=True)
class Batch:
    """B samples, padded to one size; images that cannot be read are left out.

    Where none can be read there is one blank image without an id, which must not count.

    Attributes:
        images: (B, 3, H, W) float32 normalised, zeros at the bottom and right.
        padding_mask: (B, H, W) bool, True on padding.
        targets: B targets.
        image_ids: B ids; none where no image could be read.
        unreadable: The images that were left out, or not mixed in.
        features: The frozen backbone's maps (B, c, h, w) of these images, where they were kept;
            `images` is then empty.
        place: View and number in it, by which the maps are kept.
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
        """The same samples, with the same padding, in at most `parts` batches of like size.

        With `blanks` there are always `parts`: the last ones are a blank image each.
        """
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
            torch.zeros_like(self.images[:1]),
            self.padding_mask[:1],
            [self.targets[0].empty()],
            [],
            features=None if self.features is None else tuple(f[:1] for f in self.features),
        )

    def pin_memory(self) -> Batch:
        """Images and mask in page-locked memory; called by DataLoader with `pin_memory`."""
        return replace(
            self, images=self.images.pin_memory(), padding_mask=self.padding_mask.pin_memory()
        )


def collate(samples: Sequence[Sample | Unreadable], multiple: int = STRIDE) -> Batch:
    """Pad samples to the largest height and width among them, rounded up to `multiple`."""
    remarks = [s if isinstance(s, Unreadable) else s.without for s in samples]
    unreadable = tuple(remark for remark in remarks if remark is not None)
    readable = [sample for sample in samples if isinstance(sample, Sample)]
    arrays = [sample.image.numpy() for sample in readable]
    targets = [sample.target for sample in readable]
    if not readable:
        arrays = [np.zeros((3, *unreadable[0].size_hw), np.float32)]
        targets = [Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))]
    height, width = (
        -(-max(array.shape[axis] for array in arrays) // multiple) * multiple for axis in (1, 2)
    )
    images, padding_mask = processing.collate(arrays, (height, width))
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

    The order is shuffled, chunks of batches are grouped by size, cut into batches, and the batches
    are shuffled. Of several ranks each takes every `world_size`-th batch, as many as the others.

    Attributes:
        count: Images.
        sizes_of_epoch: Epoch to the (height, width) each image will have.
        batch_size: Images a batch.
        seed: Of the order.
        shuffle: False keeps file order and does not group.
        drop_last: Leave out a last, smaller batch, unless it is the only one.
        rank: This process.
        world_size: All processes.
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
        """Batches of one rank in one epoch."""
        count, size = self.count, self.batch_size
        batches = count // size if self.drop_last and count >= size else -(-count // size)
        return (batches + self.world_size - 1) // self.world_size

    def batches(self, epoch: int) -> list[list[int]]:
        """Indices of each of this rank's batches."""
        if not self.shuffle:
            batches = self._cut(np.arange(self.count))
        else:
            rng = np.random.default_rng((self.seed & _SEED_BITS, epoch))
            batches = self._cut(self._grouped(rng, epoch))
            batches = [batches[i] for i in rng.permutation(len(batches))]
        missing = -len(batches) % self.world_size
        batches += [batches[i % len(batches)] for i in range(missing)]
        return batches[self.rank :: self.world_size]

    def _grouped(self, rng: np.random.Generator, epoch: int) -> _Indices:
        sizes = np.array(self.sizes_of_epoch(epoch), np.int64).reshape(-1, 2)
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
    """Indices reordered so that batches cut from them hold images of like height and width.

    Halved again and again, at whole batches, along the side that differs most.
    """
    if len(indices) <= batch_size:
        return indices
    axis = int(np.ptp(sizes_hw[indices], axis=0).argmax())
    indices = indices[np.argsort(sizes_hw[indices, axis], kind="stable")]
    half = max(1, -(-len(indices) // batch_size) // 2) * batch_size
    return np.concatenate(
        [
            _by_size(indices[:half], sizes_hw, batch_size),
            _by_size(indices[half:], sizes_hw, batch_size),
        ]
    )


def eval_batches(
    records: Sequence[ImageRecord], batch_size: int, preprocess: PreprocessConfig
) -> list[list[int]]:
    """Indices of batches of images that are resized to one and the same shape: none is padded.

    Padding changes what the network answers, so evaluation must not mix shapes.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, record in enumerate(records):
        shape = resized_size((record.height, record.width), preprocess)
        groups.setdefault(shape, []).append(index)
    return [
        group[start : start + batch_size]
        for _, group in sorted(groups.items())
        for start in range(0, len(group), batch_size)
    ]


class _EpochKeys(Sampler[list[SampleKey]]):
    """The batches that a DataLoader with lasting workers draws next."""

    def __init__(self) -> None:
        self.keys: list[list[SampleKey]] = []

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


class Loader:
    """Batches of a data set, epoch by epoch, prepared ahead.

    The same (seed, epoch) gives the same batches whatever the number of workers, and skipping
    gives exactly the rest of them. Without workers a background thread prepares the next batches;
    decoding and resizing leave the interpreter lock to the training step.

    Args:
        dataset: Where samples come from.
        sampler: Which samples form a batch.
        workers: Worker processes; 0 for the background thread.
        prefetch: Batches prepared ahead (by each worker); 0, without workers, for none.
        pin_memory: For transfers to a GPU.
        multiple: Sizes are padded to multiples of this.
        skip_unreadable: Leave out images that cannot be read (`Batch.unreadable` tells them)
            instead of raising; which images form a batch does not change.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        sampler: ShapeBatches,
        workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        multiple: int = STRIDE,
        skip_unreadable: bool = False,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.workers = workers
        self.prefetch = prefetch
        self.pin_memory = pin_memory
        self.multiple = multiple
        self._samples = ReadableSamples(dataset) if skip_unreadable else dataset
        self._keys = _EpochKeys()
        self._process_loader: DataLoader[Any] | None = None

    def __len__(self) -> int:
        """Batches in one epoch."""
        return len(self.sampler)

    def batches(
        self, epoch: int, skip_batches: int = 0, mixed_batches: int | None = 0
    ) -> Iterator[Batch]:
        """The batches of an epoch, without the first `skip_batches` (they are not loaded).

        Args:
            epoch: Which pass.
            skip_batches: Where to begin.
            mixed_batches: So many of the epoch's batches, from its start on, hold samples made of
                several images where the data set mixes; None for all. Zero changes which images
                form a batch, since then all sizes are those of unmixed samples.

        Raises:
            DataError: an image file cannot be decoded, unless such are skipped.
        """
        return self.chosen_batches(epoch, range(skip_batches, len(self)), mixed_batches)

    def chosen_batches(
        self, epoch: int, numbers: Sequence[int], mixed_batches: int | None = 0
    ) -> Iterator[Batch]:
        """Some batches of an epoch, by their numbers in it; the rest as for `batches`."""
        keys = self._keys_of(epoch, numbers, mixed_batches)
        return self._from_processes(keys) if self.workers > 0 else self._from_thread(keys)

    def batch(self, epoch: int, number: int) -> Batch:
        """One batch, at once. Raises as `batches` does."""
        return self._load(self._keys_of(epoch, [number], 0)[0])

    def mixed_sampler(self) -> ShapeBatches:
        """The sampler for samples that may be made of several images."""
        if self.dataset.mixing is None:
            return self.sampler
        return replace(self.sampler, sizes_of_epoch=self.dataset.mixed_sizes)

    def _keys_of(
        self, epoch: int, numbers: Sequence[int], mixed_batches: int | None
    ) -> list[list[SampleKey]]:
        batches = (self.sampler if mixed_batches == 0 else self.mixed_sampler()).batches(epoch)
        return [
            [SampleKey(epoch, i, mixed_batches is None or number < mixed_batches) for i in indices]
            for number, indices in ((number, batches[number]) for number in numbers)
        ]

    def _load(self, keys: Iterable[SampleKey]) -> Batch:
        batch = collate([self._samples[key] for key in keys], self.multiple)
        return batch.pin_memory() if self.pin_memory else batch

    def _from_thread(self, keys: list[list[SampleKey]]) -> Iterator[Batch]:
        if self.prefetch < 1:
            yield from map(self._load, keys)
            return
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dino-data")
        waiting: deque[Future[Batch]] = deque()
        try:
            for batch_keys in keys:
                waiting.append(pool.submit(self._load, batch_keys))
                if len(waiting) > self.prefetch:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _from_processes(self, keys: list[list[SampleKey]]) -> Iterator[Batch]:
        self._keys.keys = keys
        if self._process_loader is None:
            self._process_loader = DataLoader(
                self._samples,
                batch_sampler=self._keys,
                collate_fn=_Collate(self.multiple),
                num_workers=self.workers,
                prefetch_factor=max(1, self.prefetch),
                pin_memory=self.pin_memory,
                persistent_workers=True,
                multiprocessing_context="spawn",
                generator=torch.Generator(),  # its seeds (unused) shall not come from the run's
            )
        yield from self._process_loader


@dataclass(frozen=True)
class _Collate:
    """`collate` with its multiple, for worker processes."""

    multiple: int

    def __call__(self, samples: list[Sample | Unreadable]) -> Batch:
        return collate(samples, self.multiple)


def make_loader(
    dataset: DetectionDataset,
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    workers: int = 0,
    prefetch: int = 2,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
    skip_unreadable: bool = False,
) -> Loader:
    """A training loader over a data set; see `ShapeBatches` and `Loader`."""
    sampler = ShapeBatches(
        len(dataset), dataset.planned_sizes, batch_size, seed, shuffle, drop_last, rank, world_size
    )
    return Loader(dataset, sampler, workers, prefetch, pin_memory, skip_unreadable=skip_unreadable)
