"""Keeps the features of a frozen backbone on disk, so that it sees each training batch only once.

Images get a fixed number of augmented views instead of new random changes in every pass: pass e
shows view e modulo `views`. The batches of a view never change, only their order does. Training
from the cache therefore equals training without it, bit for bit, whatever part of it is on disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dino_core.data.batching import Batch
from dino_core.data.dataset import DetectionDataset
from dino_core.data.loader import Loader
from dino_core.data.seeding import generator
from dino_core.errors import DinoError
from dino_core.files import whole_file
from dino_core.models.backbones.backbone import Backbone
from dino_core.targets import Target

Place = tuple[int, int]  # view, and number of the batch in it


class FeatureCache:
    """Takes the place of a loader: gives batches with features from disk, others from the loader.

    Args:
        folder: Holds a file per batch, for this process and these settings only. It is created
            with the first file.
        loader: Loads the batches that are not on disk.
        views: Number of different passes.
        seed: Seed of the order of batches.
    """

    def __init__(self, folder: Path, loader: Loader, views: int, seed: int) -> None:
        self.folder, self.views = folder, views
        self._loader, self._seed = loader, seed

    def __len__(self) -> int:
        """Number of batches in one pass."""
        return len(self._loader)

    @property
    def dataset(self) -> DetectionDataset:
        return self._loader.dataset

    def batches(
        self, epoch: int, skip_batches: int = 0, mixed_batches: int | None = 0
    ) -> Iterator[Batch]:
        """The batches of a pass; those that are on disk have `features` instead of images.

        Arguments are those of `Loader.batches`. With cached views no images are mixed, so
        `mixed_batches` changes nothing.
        """
        # The loader makes the batches of a view as it makes those of epoch number `view`, so the
        # same augmentation comes back every `views` passes.
        view = epoch % self.views
        rng = generator(self._seed, epoch)
        # The order depends on the true epoch: only the content of a batch repeats.
        order = rng.permutation(len(self._loader))[skip_batches:].tolist()
        # Determined once at the start of the pass. Batches come from the loader in the order of
        # this list, which is how `next(loaded)` below finds the right one.
        missing = [number for number in order if not self._path((view, number)).exists()]
        loaded = self._loader.chosen_batches(view, missing)
        absent = set(missing)
        for number in order:
            place = (view, number)
            if number in absent:
                yield replace(next(loaded), place=place)
            else:
                yield self._read(place)

    def with_features(self, batch: Batch, backbone: Backbone, device: torch.device) -> Batch:
        """`batch` with its features, which are kept unless one of its images is missing.

        Raises:
            DinoError: the features cannot be written.
        """
        # A blank batch stands for unreadable images, which may be readable in the next pass.
        if batch.features is not None or not batch.image_ids:
            return batch
        # The backbone is frozen, so nothing would use a graph.
        with torch.no_grad():
            batch = replace(batch, features=tuple(backbone(batch.images.to(device))))
        # An incomplete batch would otherwise stay incomplete for the whole run.
        if batch.place is not None and not batch.unreadable:
            try:
                self._write(batch, batch.place)
            except OSError as error:
                raise DinoError(
                    f"{self.folder}: backbone features cannot be kept ({error.strerror})",
                    "free some space, or train with fewer cached_views (0: none)",
                ) from error
        return batch

    def remove(self) -> None:
        """Delete the files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, place: Place) -> Path:
        return self.folder / f"{place[0]}-{place[1]}.safetensors"

    def _write(self, batch: Batch, place: Place) -> None:
        assert batch.features is not None
        # Boxes of all images go into one tensor, and the counts divide it again.
        counts = [len(target.labels) for target in batch.targets]
        tensors: dict[str, Tensor] = {
            "padding_mask": batch.padding_mask,
            "image_ids": torch.tensor(batch.image_ids),
            "counts": torch.tensor(counts),
            "labels": torch.cat([target.labels for target in batch.targets]),
            "boxes_cxcywh": torch.cat([target.boxes_cxcywh for target in batch.targets]),
        }
        for level, features in enumerate(batch.features):
            # The backbone gives channels last in memory. A file keeps no strides, so the axes are
            # written in that order, and reading restores the layout and with it the exact results.
            tensors[f"features.{level}"] = features.permute(0, 2, 3, 1).contiguous().cpu()
        with whole_file(self._path(place)) as file:
            file.write(safetensors.torch.save(tensors))

    def _read(self, place: Place) -> Batch:
        """A batch from disk, or from its images where the file is damaged."""
        try:
            tensors = safetensors.torch.load_file(self._path(place))
        # A crash of the machine can leave a damaged file. Recomputing gives the same features.
        except (OSError, SafetensorError):
            return replace(self._loader.batch(*place), place=place)
        counts = tensors["counts"].tolist()
        labels = torch.split(tensors["labels"], counts)
        boxes = torch.split(tensors["boxes_cxcywh"], counts)
        levels = sum(name.startswith("features.") for name in tensors)
        features = (tensors[f"features.{level}"].permute(0, 3, 1, 2) for level in range(levels))
        mask = tensors["padding_mask"]
        return Batch(
            # Without pixels, but with the batch axis, which `Batch.split` cuts.
            images=torch.empty(len(mask), 3, 0, 0),
            padding_mask=mask,
            targets=[Target(*each) for each in zip(labels, boxes, strict=True)],
            image_ids=tensors["image_ids"].tolist(),
            features=tuple(features),
            place=place,
        )
