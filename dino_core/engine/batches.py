"""An endless stream of training batches that knows its place, so that a run resumes anywhere."""

from __future__ import annotations

from collections.abc import Iterator

from dino_core.data.batching import Batch
from dino_core.data.loader import Loader
from dino_core.engine.feature_cache import FeatureCache


class BatchStream:
    """Batches of one epoch after the other.

    Attributes:
        epoch: Passes that are complete.
        batch: Batches taken from the present pass.
        mixed_batches: The first so many batches of this pass hold samples made of several images,
            where the data set mixes; None while nobody has stopped it, then zero in later passes.
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
        """The next `count` batches, across the end of a pass where need be."""
        return [self._next() for _ in range(count)]

    def go_to(self, epoch: int, batch: int, mixed_batches: int | None) -> None:
        """Go on from another place."""
        self.epoch, self.batch, self.mixed_batches = epoch, batch, mixed_batches
        self._batches = None

    def stop_mixing(self) -> None:
        """From the next batch on every sample is one image; what was prepared ahead is dropped."""
        if self.mixed_batches is None and self._loader.dataset.mixing is not None:
            self.mixed_batches, self._batches = self.batch, None

    def _next(self) -> Batch:
        if self._batches is None:
            self._batches = self._loader.batches(self.epoch, self.batch, self.mixed_batches)
        batch = next(self._batches)
        self.batch += 1
        if self.batch >= len(self._loader):
            self.epoch, self.batch, self._batches = self.epoch + 1, 0, None
            if self.mixed_batches is not None:
                self.mixed_batches = 0
        return batch
