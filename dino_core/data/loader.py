"""Loading of a data set's batches ahead of their use, by a thread or by worker processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from dino_core.data.batching import Batch, ShapeBatches, collate
from dino_core.data.dataset import DetectionDataset, ReadableSamples, SampleKey


class _EpochKeys(Sampler[list[SampleKey]]):
    """The batches that a DataLoader with persistent workers loads next.

    A DataLoader keeps its sampler for good, so each epoch's keys are put into this one.
    """

    def __init__(self) -> None:
        self.keys: list[list[SampleKey]] = []

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class LoaderSettings:
    """How a data set is loaded.

    Attributes:
        batch_size: Images per batch.
        seed: Random seed of the order of the images.
        shuffle: False keeps the images in order and does not group them by size.
        drop_last: Leave out a last, smaller batch, unless it is the only one.
        rank: Number of this process.
        world_size: Number of processes, which share the batches.
        workers: Number of worker processes; 0 for a background thread.
        prefetch: Batches to prepare ahead (per worker); 0, without workers, for none.
        pin_memory: Put batches into page-locked memory, for transfers to a GPU.
        skip_unreadable: Leave out images that cannot be read (`Batch.unreadable` lists them)
            instead of raising. Which images form a batch does not change.
    """

    batch_size: int
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1
    workers: int = 0
    prefetch: int = 2
    pin_memory: bool = False
    skip_unreadable: bool = False


class Loader:
    """Batches of a data set, epoch by epoch, prepared ahead.

    The same (seed, epoch) gives the same batches whatever the number of workers, and skipping
    batches gives exactly the rest of them. Without workers a background thread prepares the next
    batches, which works since decoding and resizing release the interpreter lock.
    """

    def __init__(self, dataset: DetectionDataset, settings: LoaderSettings) -> None:
        self.dataset = dataset
        self.settings = settings
        self.sampler = ShapeBatches(
            count=len(dataset),
            sizes_of_epoch=dataset.planned_sizes,
            batch_size=settings.batch_size,
            seed=settings.seed,
            shuffle=settings.shuffle,
            drop_last=settings.drop_last,
            rank=settings.rank,
            world_size=settings.world_size,
        )
        self._samples = ReadableSamples(dataset) if settings.skip_unreadable else dataset
        # Shared with the DataLoader for good: starting its processes again for each epoch would
        # take longer than a small epoch does.
        self._keys = _EpochKeys()
        self._process_loader: DataLoader[Any] | None = None

    def __len__(self) -> int:
        """Number of batches in one epoch."""
        return len(self.sampler)

    def batches(
        self, epoch: int, skip_batches: int = 0, mixed_batches: int | None = 0
    ) -> Iterator[Batch]:
        """The batches of an epoch, without the first `skip_batches`, which are not loaded.

        Args:
            epoch: Number of the pass over the data.
            skip_batches: Number of batches to leave out.
            mixed_batches: Number of batches, from the epoch's start on, whose samples may be made
                of several images, if the data set mixes; None for all. Zero changes which images
                form a batch, since all sizes are then those of unmixed samples.

        Raises:
            DataError: An image file cannot be decoded, unless such files are skipped.
        """
        return self.chosen_batches(epoch, range(skip_batches, len(self)), mixed_batches)

    def chosen_batches(
        self, epoch: int, numbers: Sequence[int], mixed_batches: int | None = 0
    ) -> Iterator[Batch]:
        """Some batches of an epoch, by their numbers in it; otherwise like `batches`."""
        keys = self._keys_of(epoch, numbers, mixed_batches)
        return self._from_processes(keys) if self.settings.workers > 0 else self._from_thread(keys)

    def batch(self, epoch: int, number: int) -> Batch:
        """One batch, loaded now. Raises as `batches` does."""
        return self._load(self._keys_of(epoch, [number], 0)[0])

    def mixed_sampler(self) -> ShapeBatches:
        """The sampler for samples that may be made of several images."""
        if self.dataset.mixing is None:
            return self.sampler
        return replace(self.sampler, sizes_of_epoch=self.dataset.mixed_sizes)

    def _keys_of(
        self, epoch: int, numbers: Sequence[int], mixed_batches: int | None
    ) -> list[list[SampleKey]]:
        # A mosaic has another size than its first image alone, so batches are formed from other
        # sizes.
        batches = (self.sampler if mixed_batches == 0 else self.mixed_sampler()).batches(epoch)
        return [
            [SampleKey(epoch, i, mixed_batches is None or number < mixed_batches) for i in indices]
            for number, indices in ((number, batches[number]) for number in numbers)
        ]

    def _load(self, keys: Iterable[SampleKey]) -> Batch:
        batch = collate([self._samples[key] for key in keys])
        return batch.pin_memory() if self.settings.pin_memory else batch

    def _from_thread(self, keys: list[list[SampleKey]]) -> Iterator[Batch]:
        if self.settings.prefetch < 1:
            yield from map(self._load, keys)
            return
        # One thread: decoding and resizing release the interpreter lock, while more threads would
        # compete with the training step for the cores.
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dino-data")
        waiting: deque[Future[Batch]] = deque()
        try:
            for batch_keys in keys:
                waiting.append(pool.submit(self._load, batch_keys))
                # The first batches are submitted before any is waited for.
                if len(waiting) > self.settings.prefetch:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # Reached also where the consumer closes this generator in the middle of an epoch.
            pool.shutdown(wait=True, cancel_futures=True)

    def _from_processes(self, keys: list[list[SampleKey]]) -> Iterator[Batch]:
        # The sampler is read when the DataLoader is iterated, below.
        self._keys.keys = keys
        if self._process_loader is None:
            self._process_loader = DataLoader(
                self._samples,
                batch_sampler=self._keys,
                collate_fn=collate,
                num_workers=self.settings.workers,
                prefetch_factor=max(1, self.settings.prefetch),
                pin_memory=self.settings.pin_memory,
                persistent_workers=True,
                # Forked processes would inherit threads and locks of torch in an unknown state.
                multiprocessing_context="spawn",
                # DataLoader draws a seed for its workers. Nothing uses it, but drawing it from the
                # global generator would change the random numbers of the run.
                generator=torch.Generator(),
            )
        yield from self._process_loader
