"""Training batches: how they are loaded, and an endless stream of them that knows its position."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from dino_core.config import PreprocessConfig, ResolvedConfig, to_dict
from dino_core.data.augment.mixing import build_mixing
from dino_core.data.augment.transforms import build_transform
from dino_core.data.batching import Batch
from dino_core.data.dataset import DetectionDataset
from dino_core.data.loader import Loader, LoaderSettings
from dino_core.data.records import DatasetIndex
from dino_core.engine.feature_cache import FeatureCache
from dino_core.engine.parallel.collectives import rank, world_size


def training_loader(
    config: ResolvedConfig,
    dataset: DatasetIndex,
    preprocess: PreprocessConfig,
    device: torch.device,
) -> Loader:
    """This process's share of the training batches, augmented as the recipe says."""
    transform = build_transform(config.augment, preprocess, scale=config.scale_jitter)
    records = dataset.splits["train"]
    mixing = build_mixing(config.mosaic, config.copy_paste, config.augment, preprocess, records)
    images = DetectionDataset(records, preprocess, transform, config.seed, mixing)
    settings = LoaderSettings(
        config.batch,
        seed=config.seed,
        # As in the official code (ALGORITHM 26).
        drop_last=True,
        rank=rank(),
        world_size=world_size(),
        workers=config.workers,
        pin_memory=device.type == "cuda",
        # A file that breaks during a run of days must not end it. `engine/trouble.py` counts such
        # files.
        skip_unreadable=True,
    )
    return Loader(images, settings)


def cached_loader(
    config: ResolvedConfig, preprocess: PreprocessConfig, loader: Loader, folder: Path
) -> FeatureCache:
    """A cache of backbone features in front of `loader`, in a subfolder for these settings."""
    # The name covers everything that decides what the batches hold.
    settings = (to_dict(config), to_dict(preprocess), rank(), world_size())
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    return FeatureCache(folder / name, loader, config.cached_views, config.seed)


class BatchStream:
    """The batches of one epoch after the other.

    Attributes:
        epoch: Completed passes over the data.
        batch: Batches taken from the current pass.
        mixed_batches: Number of batches at the beginning of the current pass in which images are
            mixed (mosaic, copy-paste). None until mixing is stopped, and 0 in later passes.
    """

    def __init__(
        self,
        loader: Loader | FeatureCache,
        epoch: int = 0,
        batch: int = 0,
        mixed_batches: int | None = None,
    ) -> None:
        self._loader = loader
        self.epoch, self.batch, self.mixed_batches = epoch, batch, mixed_batches
        self._batches: Iterator[Batch] | None = None

    def take(self, count: int) -> list[Batch]:
        """The next `count` batches, across the end of a pass where necessary."""
        return [self._next() for _ in range(count)]

    def go_to(self, epoch: int, batch: int, mixed_batches: int | None) -> None:
        """Continue from another position."""
        self.epoch, self.batch, self.mixed_batches = epoch, batch, mixed_batches
        # Whatever was prefetched for the old position is discarded.
        self._batches = None

    def stop_mixing(self) -> None:
        """Mix no images from the next batch on; batches that were prefetched are discarded."""
        if self.mixed_batches is None and self._loader.dataset.mixing is not None:
            self.mixed_batches, self._batches = self.batch, None

    def _next(self) -> Batch:
        if self._batches is None:
            self._batches = self._loader.batches(self.epoch, self.batch, self.mixed_batches)
        batch = next(self._batches)
        self.batch += 1
        if self.batch >= len(self._loader):
            # The position moves with the batch that is handed out, so prefetching does not change
            # it.
            self.epoch, self.batch, self._batches = self.epoch + 1, 0, None
            if self.mixed_batches is not None:
                self.mixed_batches = 0
        return batch
