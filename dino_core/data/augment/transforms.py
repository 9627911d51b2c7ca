"""Training augmentation: the published one (ALGORITHM 28) and two for small images.

Random numbers come from a generator that the caller seeds for each image, not from torch's global
state, so that threads and worker processes give the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import cv2
import numpy as np
from torch import Tensor

from dino_core.config import PreprocessConfig
from dino_core.data.augment.color import ColorJitter
from dino_core.data.augment.scene import Scene, SizeHW, as_array, crop, flip, pad, resize, select
from dino_core.errors import ConfigError
from dino_core.processing.preprocess import published_size, resized_size

AugmentKind = Literal["none", "default", "strong", "published"]

_COLORS: dict[AugmentKind, ColorJitter] = {
    "default": ColorJitter(0.2, 0.2, 0.2, 0.01),
    "strong": ColorJitter(0.3, 0.4, 0.5, 0.05),
}
# The numbers of ALGORITHM 28.
_PUBLISHED_SHORT_SIDE = 800
_PUBLISHED_SIDES = tuple(range(480, 801, 32))
_PUBLISHED_BEFORE_CROP = (400, 500, 600)
_PUBLISHED_CROP = (384, 600)


class Transform(Protocol):
    """One augmentation: a function of the scene and the generator only.

    `final_size` returns the size that a call with an equal generator would give, without an image,
    so that images can be batched by the shape that they will have. It must make the same draws as a
    call, or all that follows would differ.
    """

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene: ...

    def final_size(self, size_hw: SizeHW, rng: np.random.Generator) -> SizeHW: ...


def _place(inner_hw: SizeHW, outer_hw: SizeHW, rng: np.random.Generator) -> SizeHW:
    """A random (top, left) at which the smaller size fits into the larger one; always two draws."""
    top, left = (
        int(rng.random() * (outer - inner + 1))
        for inner, outer in zip(inner_hw, outer_hw, strict=True)
    )
    return top, left


def _place_around(
    box: Sequence[float], inner_hw: SizeHW, outer_hw: SizeHW, rng: np.random.Generator
) -> SizeHW:
    """A random (top, left) of a window in the image that contains the center of a box."""
    corner = []
    for axis, (inner, outer) in enumerate(zip(inner_hw, outer_hw, strict=True)):
        center = int((box[1 - axis] + box[3 - axis]) / 2)
        # The window must contain the center's pixel and lie in the image.
        low, high = max(0, center - inner + 1), min(center, outer - inner)
        corner.append(int(rng.integers(low, max(low, high) + 1)))
    return corner[0], corner[1]


def crop_near_box(
    scene: Scene, size_hw: SizeHW, min_visible: float, rng: np.random.Generator
) -> Scene:
    """Crop a random window; if it has no box but the image has, a window around a random box.

    The number of draws depends on the boxes, which `final_size` does not know. A transform
    therefore passes a generator of its own.
    """
    top, left = _place(size_hw, scene.size_hw, rng)
    result = crop(scene, top, left, size_hw, min_visible)
    if len(result.labels) or not len(scene.labels):
        return result
    box = scene.boxes[int(rng.integers(len(scene.labels)))].tolist()
    top, left = _place_around(box, size_hw, scene.size_hw, rng)
    return crop(scene, top, left, size_hw, min_visible)


def _scaled(size_hw: SizeHW, preprocess: PreprocessConfig, factor: float) -> SizeHW:
    """The size at inference times `factor`, each side between one pixel and `max_side`."""
    height, width = (
        min(preprocess.max_side, max(1, round(side * factor)))
        for side in resized_size(size_hw, preprocess)
    )
    return height, width


@dataclass(frozen=True)
class Chain:
    """Applies transforms one after the other."""

    steps: tuple[Transform, ...]

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        for step in self.steps:
            scene = step(scene, rng)
        return scene

    def final_size(self, size_hw: SizeHW, rng: np.random.Generator) -> SizeHW:
        for step in self.steps:
            size_hw = step.final_size(size_hw, rng)
        return size_hw


@dataclass(frozen=True)
class Choice:
    """Applies one of several transforms, chosen with the given probabilities."""

    options: tuple[Transform, ...]
    probabilities: tuple[float, ...]

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        return self._pick(rng)(scene, rng)

    def final_size(self, size_hw: SizeHW, rng: np.random.Generator) -> SizeHW:
        return self._pick(rng).final_size(size_hw, rng)

    def _pick(self, rng: np.random.Generator) -> Transform:
        draw, total = rng.random(), 0.0
        for option, probability in zip(self.options, self.probabilities, strict=True):
            total += probability
            if draw < total:
                return option
        return self.options[-1]


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left and right."""

    probability: float = 0.5

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        if rng.random() >= self.probability:
            return scene
        return flip(scene)

    def final_size(self, size_hw: SizeHW, rng: np.random.Generator) -> SizeHW:
        # Thrown away: a call draws it, so the numbers after it must come out equal here.
        rng.random()
        return size_hw


@dataclass(frozen=True)
class ResizeShortSide:
    """Resizes the short side to a random one of `sides`, the long side to at most `max_side`."""

    sides: tuple[int, ...]
    max_side: int | None = None

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        return resize(scene, self.final_size(scene.size_hw, rng))

    def final_size(self, size_hw: SizeHW, rng: np.random.Generator) -> SizeHW:
        side = self.sides[int(rng.integers(len(self.sides)))]
        return published_size(size_hw, side, self.max_side)


@dataclass(frozen=True)
class SizeCrop:
    """Crops a window with random sides in pixels; a box stays if any part does (published)."""

    min_side: int
    max_side: int

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        (height, width), (top, left) = self._window(scene.size_hw, rng)
        # The published crop keeps even the smallest remainder of a box.
        return crop(scene, top, left, (height, width), min_visible=0.0)

    def final_size(self, size_hw: SizeHW, rng: np.random.Generator) -> SizeHW:
        return self._window(size_hw, rng)[0]

    def _window(self, size_hw: SizeHW, rng: np.random.Generator) -> tuple[SizeHW, SizeHW]:
        """A random (height, width) and a random (top, left)."""
        height, width = (
            int(rng.integers(min(self.min_side, side), min(self.max_side, side) + 1))
            for side in size_hw
        )
        return (height, width), _place((height, width), size_hw, rng)


@dataclass(frozen=True)
class SafeCrop:
    """Crops a window of a random fraction of each side, around a box if it would have none.

    A box is dropped if at most `min_visible` of its area is left.
    """

    min_fraction: float
    min_visible: float = 0.25

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        size_hw = self._draw(scene.size_hw, rng)
        places = np.random.default_rng(
            int(rng.integers(1 << 62))
        )  # one draw here, whatever the crop needs
        return crop_near_box(scene, size_hw, self.min_visible, places)

    def final_size(self, size_hw: SizeHW, rng: np.random.Generator) -> SizeHW:
        size_hw = self._draw(size_hw, rng)
        rng.integers(1 << 62)
        return size_hw

    def _draw(self, size_hw: SizeHW, rng: np.random.Generator) -> SizeHW:
        height, width = (
            max(1, round(side * rng.uniform(self.min_fraction, 1.0))) for side in size_hw
        )
        return height, width


@dataclass(frozen=True)
class ScaleTo:
    """Resizes to the size at inference times a random factor, no side beyond `max_side`."""

    preprocess: PreprocessConfig
    low: float
    high: float = 1.0

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        return resize(scene, self.final_size(scene.size_hw, rng))

    def final_size(self, size_hw: SizeHW, rng: np.random.Generator) -> SizeHW:
        return _scaled(size_hw, self.preprocess, rng.uniform(self.low, self.high))


@dataclass(frozen=True)
class ScaleJitter:
    """Shows the image smaller, or a window of it larger, than at inference, by a random factor.

    This is large scale jitter (arXiv 2012.07177, section 3, with factors 0.1 to 2) without its
    fixed canvas.
    """

    preprocess: PreprocessConfig
    low: float
    high: float
    min_visible: float = 0.25

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        factor, final = self._draw(scene.size_hw, rng)
        if factor > 1:
            height, width = (max(1, round(side / factor)) for side in scene.size_hw)
            places = np.random.default_rng(int(rng.integers(1 << 62)))
            scene = crop_near_box(scene, (height, width), self.min_visible, places)
        return resize(scene, final)

    def final_size(self, size_hw: SizeHW, rng: np.random.Generator) -> SizeHW:
        factor, final = self._draw(size_hw, rng)
        if factor > 1:
            rng.integers(1 << 62)
        return final

    def _draw(self, size_hw: SizeHW, rng: np.random.Generator) -> tuple[float, SizeHW]:
        factor = rng.uniform(self.low, self.high)
        return factor, _scaled(size_hw, self.preprocess, min(1.0, factor))


@dataclass(frozen=True)
class ZoomOut:
    """Places the shrunken image on a canvas of its mean color and of its size at inference."""

    preprocess: PreprocessConfig
    low: float

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        full = _scaled(scene.size_hw, self.preprocess, 1.0)
        height, width = _scaled(scene.size_hw, self.preprocess, rng.uniform(self.low, 1.0))
        small = resize(scene, (height, width))
        top, left = _place((height, width), full, rng)
        # The mean color gives no hint where the image ends, unlike black.
        color = cv2.mean(as_array(small.image))[:3]
        return pad(small, top, left, full, [round(value) for value in color])

    def final_size(self, size_hw: SizeHW, rng: np.random.Generator) -> SizeHW:
        # `rng.uniform` takes one number of the stream like `rng.random`.
        rng.random(3)  # the factor and the place
        return _scaled(size_hw, self.preprocess, 1.0)


@dataclass(frozen=True)
class DropSmall:
    """Drops boxes with a side below `min_side` pixels of the final image."""

    min_side: float = 2.0

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        boxes = scene.boxes.as_subclass(Tensor)
        return select(scene, ((boxes[:, 2:] - boxes[:, :2]) >= self.min_side).all(dim=1))

    def final_size(self, size_hw: SizeHW, rng: np.random.Generator) -> SizeHW:
        return size_hw


def build_transform(
    kind: AugmentKind,
    preprocess: PreprocessConfig,
    scale: tuple[float, float] | None = None,
) -> Transform | None:
    """The augmentation of that name; None for "none", which is plain preprocessing.

    Args:
        kind: "published" is ALGORITHM 28, scaled with the short side (800 when published).
            "default" flips, scales to 0.7 to 1 times the inference size, crops half of the time and
            shifts colors a little. "strong" also zooms out, crops closer and distorts colors.
        preprocess: The input at inference.
        scale: Lowest and highest factor of the size at inference, which replace the geometry of
            "default" or "strong".

    Raises:
        ConfigError: The kind is unknown, or `scale` is given for another kind.
    """
    geometry: Transform
    if scale is not None and kind in ("none", "published"):
        raise ConfigError(
            f"augment '{kind}' has no scale_jitter", "set augment to default or strong"
        )
    if kind == "none":
        return None
    if kind == "published":
        return _published(preprocess)
    if kind == "default":
        # Never larger than at inference: an enlarged image has no new detail and costs more.
        whole = ScaleTo(preprocess, 0.7)
        geometry = Choice((whole, Chain((SafeCrop(0.6), whole))), (0.5, 0.5))
    elif kind == "strong":
        whole = ScaleTo(preprocess, 0.6)
        close = Chain((SafeCrop(0.4), whole))
        geometry = Choice((ZoomOut(preprocess, 0.5), close, whole), (0.25, 0.5, 0.25))
    else:
        raise ConfigError(
            f"unknown augmentation '{kind}'", "known: none, default, strong, published"
        )
    if scale is not None:
        geometry = ScaleJitter(preprocess, *scale)
    # Colors last, on the final and usually smaller image, where they cost least.
    return Chain((geometry, finishing(kind)))


def finishing(kind: AugmentKind) -> Transform:
    """The part of an augmentation that keeps the size: flips and colors."""
    if kind not in _COLORS:
        return Chain((HorizontalFlip(), DropSmall()))
    return Chain((HorizontalFlip(), _COLORS[kind], DropSmall()))


def _published(preprocess: PreprocessConfig) -> Transform:
    """ALGORITHM 28, with its pixel counts multiplied by `short_side` / 800."""

    def scaled(sides: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(round(s * preprocess.short_side / _PUBLISHED_SHORT_SIDE) for s in sides)

    resize = ResizeShortSide(scaled(_PUBLISHED_SIDES), preprocess.max_side)
    least, most = scaled(_PUBLISHED_CROP)
    cropped = Chain(
        (ResizeShortSide(scaled(_PUBLISHED_BEFORE_CROP)), SizeCrop(least, most), resize)
    )
    return Chain((HorizontalFlip(), Choice((resize, cropped), (0.5, 0.5))))
