"""Records as training samples: load, augment, normalize; deterministic in (seed, epoch, index)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dino_core.boxes import xyxy_to_cxcywh
from dino_core.config import PreprocessConfig
from dino_core.data.augment.mixing import Mixing
from dino_core.data.augment.mosaic import PIECES, Piece
from dino_core.data.augment.scene import Scene, SizeHW, make_scene
from dino_core.data.augment.transforms import Transform
from dino_core.data.records import ImageRecord
from dino_core.data.seeding import generator
from dino_core.errors import DataError
from dino_core.processing.image_files import open_image
from dino_core.processing.preprocess import (
    load_image,
    normalize,
    preprocess,
    resized_size,
    to_rgb_array,
)
from dino_core.targets import Target

_ROOM = 2  # JPEGs are decoded at no less than this times the input's long side, to allow crops
# Mixing draws from a generator of its own, so that samples that are not mixed do not change.
_MIXING_DRAWS = 1


class SampleKey(NamedTuple):
    """Identifies a sample: epoch, index of the record, and whether images may be mixed."""

    epoch: int
    record: int
    mixing: bool = False


@dataclass(frozen=True)
class Unreadable:
    """Takes the place of a sample whose image could not be read.

    Attributes:
        path: The image file.
        message: What is wrong with it.
        size_hw: (height, width) in pixels of the network's input without augmentation.
    """

    path: str
    message: str
    size_hw: tuple[int, int]


@dataclass(frozen=True)
class Sample:
    """One image and its ground truth.

    Attributes:
        image: (3, H, W) float32, normalized.
        target: Labels and boxes, without crowds.
        image_id: The record's id; for a mosaic that of the first image.
        without: An image that was to be mixed in and could not be read, or None.
    """

    image: Tensor
    target: Target
    image_id: int
    without: Unreadable | None = None


class PartnerError(DataError):
    """An image that was to be mixed into a sample cannot be read.

    Attributes:
        path: The image file.
    """

    def __init__(self, message: str, hint: str = "", path: str = "") -> None:
        super().__init__(message, hint)
        self.path = path


class DetectionDataset(Dataset[Sample]):
    """The samples of a split.

    Args:
        records: The split's images.
        preprocess: The network's input, for which `transform` must have been built.
        transform: Augmentation from `build_transform`; None does exactly what inference does.
        seed: Random seed; with the epoch and the index it decides every random choice.
        mixing: Which samples are made of several images; needs a `transform`.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        preprocess: PreprocessConfig,
        transform: Transform | None = None,
        seed: int = 0,
        mixing: Mixing | None = None,
    ) -> None:
        self.records = tuple(records)
        self.preprocess = preprocess
        self.transform = transform
        self.seed = seed
        self.mixing = mixing

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int] | SampleKey) -> Sample:
        """The sample of a key, of a plain (epoch, index), or of an index in epoch 0.

        Raises:
            PartnerError: An image that is to be mixed in cannot be decoded.
            DataError: The image itself cannot be decoded.
        """
        key = SampleKey(0, key) if isinstance(key, int) else SampleKey(*key)
        record = self.records[key.record]
        if self.transform is None:
            pixels = load_image(record.path)
            _check_shape(record, pixels)
            # A crowd region is no single object, so it would teach wrong boxes (ALGORITHM 28).
            wanted = np.flatnonzero(~record.is_crowd)
            image = preprocess(pixels, self.preprocess)
            labels = torch.from_numpy(record.class_indices[wanted])
            boxes = torch.from_numpy(record.boxes_xyxy_px[wanted])
            boxes_cxcywh = _normalized_cxcywh(boxes, (record.height, record.width))
        else:
            # Boxes and pixels go through the same transform, and the size is the scene's own at the
            # end.
            scene = self._augmented(key, self.transform)
            pixels = scene.image.as_subclass(Tensor).permute(1, 2, 0).numpy()  # 3, h, w -> h, w, 3
            image = normalize(pixels, self.preprocess)
            labels = scene.labels
            boxes_cxcywh = _normalized_cxcywh(scene.boxes.as_subclass(Tensor), scene.size_hw)
        return Sample(torch.from_numpy(image), Target(labels, boxes_cxcywh), record.image_id)

    def planned_sizes(self, epoch: int) -> list[SizeHW]:
        """(height, width) of every sample of an epoch, computed without loading an image."""
        if self.transform is None:
            return [resized_size((r.height, r.width), self.preprocess) for r in self.records]
        return [self._planned(epoch, index, self.transform) for index in range(len(self))]

    def mixed_sizes(self, epoch: int) -> list[SizeHW]:
        """Like `planned_sizes`, for samples whose key allows mixing."""
        if self.mixing is None or self.transform is None:
            return self.planned_sizes(epoch)
        return [
            self.mixing.mosaic.final_size((record.height, record.width))
            if self.mixing.wants_mosaic(self._generator(epoch, index, _MIXING_DRAWS))
            else self._planned(epoch, index, self.transform)
            for index, record in enumerate(self.records)
        ]

    def _planned(self, epoch: int, index: int, transform: Transform) -> SizeHW:
        record = self.records[index]
        return transform.final_size((record.height, record.width), self._generator(epoch, index))

    def _generator(self, epoch: int, index: int, *purpose: int) -> np.random.Generator:
        return generator(self.seed, epoch, index, *purpose)

    def _augmented(self, key: SampleKey, transform: Transform) -> Scene:
        # A generator for each sample, so that neither the order nor the worker changes what it
        # shows.
        rng = self._generator(key.epoch, key.record)
        room = _ROOM * self.preprocess.max_side
        if not key.mixing or self.mixing is None:
            return transform(self._scene(key.record, room), rng)
        draws = self._generator(key.epoch, key.record, _MIXING_DRAWS)
        mixing, is_mosaic = self.mixing, self.mixing.wants_mosaic(draws)
        # Drawn in any case, so that the numbers after it do not depend on whether there are donors.
        pastes = draws.random() < mixing.paste_share and mixing.donors is not None
        if is_mosaic:
            others = draws.integers(len(self.records), size=PIECES - 1).tolist()
            pieces = [self._piece(key.record), *map(self._partner, others)]
            scene = mixing.mosaic(pieces, draws)
        else:
            scene = self._scene(key.record, room)
        if pastes and mixing.donors is not None:
            donor, box = mixing.donors.choose(draws)
            other = self._partner(donor).load(max(scene.size_hw))
            scene = mixing.paste(scene, other, box, draws)
        # A mosaic has its scale already. The rest of the augmentation (flips, colors) still
        # applies.
        return (mixing.finish if is_mosaic else transform)(scene, rng)

    def _piece(self, index: int) -> Piece:
        record = self.records[index]
        return Piece((record.height, record.width), partial(self._scene, index))

    def _partner(self, index: int) -> Piece:
        record = self.records[index]

        def load(min_side: int) -> Scene:
            try:
                return self._scene(index, min_side)
            except DataError as error:
                raise PartnerError(error.message, error.hint, str(record.path)) from error

        return Piece((record.height, record.width), load)

    def _scene(self, index: int, min_side: int) -> Scene:
        """An image and its boxes, without crowds.

        The long side has at least `min_side` pixels, if the file's image has.
        """
        record = self.records[index]
        # Below that, the decoder could not even halve it.
        large = max(record.width, record.height) >= 2 * min_side
        pixels = load_reduced(record.path, min_side) if large else load_image(record.path)
        _check_shape(record, pixels)
        scale_x, scale_y = pixels.shape[1] / record.width, pixels.shape[0] / record.height
        scale = np.array([scale_x, scale_y, scale_x, scale_y], np.float32)
        wanted = np.flatnonzero(~record.is_crowd)
        # From pixels of the file to pixels of the decoded image, which may be smaller.
        boxes = torch.from_numpy(record.boxes_xyxy_px[wanted] * scale)
        return make_scene(pixels, boxes, torch.from_numpy(record.class_indices[wanted]))


class ReadableSamples(Dataset["Sample | Unreadable"]):
    """The samples of a data set, with an `Unreadable` in the place of each that cannot be read."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: SampleKey) -> Sample | Unreadable:
        """The sample of a key, or what is wrong with its file.

        If only an image that was to be mixed in cannot be read, the sample is not mixed.
        """
        record = self.dataset.records[key.record]
        size_hw = resized_size((record.height, record.width), self.dataset.preprocess)
        try:
            return self.dataset[key]
        except PartnerError as error:
            # Without mixing the sample is what it would be in a run without it.
            alone = self[key._replace(mixing=False)]
            if isinstance(alone, Unreadable):
                return alone
            return replace(alone, without=Unreadable(error.path, error.message, size_hw))
        except DataError as error:
            return Unreadable(str(record.path), error.message, size_hw)


def load_reduced(path: Path, min_side: int) -> NDArray[np.uint8]:
    """Like `load_image`, but a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size.

    The decoder's own reduction takes a fraction of the time of a full decode. Pixels differ a
    little from a resized image, which does not matter to augmentation, but evaluation must not use
    it.

    Args:
        path: The image file.
        min_side: Least number of pixels of the long side after the reduction.
    """
    # Where this fails, load_image raises an error that says what is wrong.
    with contextlib.suppress(DataError), open_image(path) as image:
        if image.format == "JPEG" and max(image.size) >= 2 * min_side:
            # draft() chooses the largest reduction that keeps at least the wanted size.
            factor = max(image.size) / min_side
            wanted = (int(image.width / factor), int(image.height / factor))
            image.draft("RGB", wanted)
            return to_rgb_array(image)
    return load_image(path)


def _check_shape(record: ImageRecord, pixels: NDArray[np.uint8]) -> None:
    """Raises DataError if the image has another size than when the data set was read.

    The boxes would otherwise be silently at wrong places.
    """
    height, width = pixels.shape[:2]
    expected = width / record.width * record.height
    if width <= record.width and abs(height - expected) < 2 and height <= record.height:
        return  # the whole image, or one reduced by the JPEG decoder, which rounds up
    raise DataError(
        f"{record.path}: the image is {width}x{height}, but it was read as "
        f"{record.width}x{record.height}",
        "the file changed or its annotation states another size",
    )


def _normalized_cxcywh(boxes_xyxy_px: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """(N, 4) boxes xyxy in pixels -> boxes cxcywh in [0, 1], clipped to the image."""
    height, width = size_hw
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    # Crops can leave boxes a fraction of a pixel outside, and the loss expects [0, 1].
    return xyxy_to_cxcywh((boxes_xyxy_px / scale).clamp(0.0, 1.0))
