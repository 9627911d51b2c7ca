"""Gray values of 16 bits, 32 bits or floats as 8 bits, read strip by strip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_STRIP_PIXELS = 1 << 22  # converted at a time, which bounds the memory of large images
_DEPTHS = (10, 12, 14, 16)  # bits of the values that cameras put into 16


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The first row and the pixels of each part of an image, so that no copy is as large as all."""
    rows = max(1, _STRIP_PIXELS // image.width)
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


@dataclass(frozen=True)
class Levels:
    """How values of more than 8 bits become 8: `low` becomes 0, `low` plus `span` becomes 256.

    Attributes:
        low: Is subtracted first.
        span: How many levels become 256.
        rounded: Whether `low` plus `span` becomes 255 instead, and values are rounded.
    """

    low: float
    span: float
    rounded: bool = False

    def to_eight_bits(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """The values as uint8."""
        scaled = _finite(values) - self.low
        if self.rounded:
            return np.rint(scaled * (255 / self.span)).astype(np.uint8)
        return np.minimum(scaled * (256 / self.span), 255).astype(np.uint8)


def levels_of(image: Image.Image | NDArray[np.generic]) -> Levels:
    """How to make a grayscale image of 16-bit, 32-bit or float values one of uint8.

    Floats in [0, 1] are multiplied by 255, and values in 0 to 255 kept. Integers in 16 bits are
    those of `_levels_of_sixteen_bits`. Values of any other range are stretched so that the minimum
    becomes 0 and the maximum 255.
    """
    is_float = isinstance(image, Image.Image) and image.mode == "F"
    is_long = isinstance(image, Image.Image) and image.mode == "I"
    low, high = _extremes(image)
    if is_float and low >= 0 and high <= 1:
        return Levels(0, 1, rounded=True)
    if (is_float or is_long) and low >= 0 and high <= 255:
        return Levels(0, 255, rounded=True)
    if not is_float and low >= 0 and high <= 65535:
        return _levels_of_sixteen_bits(low, high)
    return Levels(low, high - low, rounded=True)


def _extremes(image: Image.Image | NDArray[np.generic]) -> tuple[float, float]:
    """Least and greatest value; those that are not finite count as 0."""
    if isinstance(image, np.ndarray):
        return float(image.min()), float(image.max())
    parts = (np.asarray(strip) for _, strip in strips(image))
    ends = [(float(v.min()), float(v.max())) for v in map(_finite, parts)]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _finite(values: NDArray[np.generic]) -> NDArray[np.float64]:
    # Float TIFFs of scientific data often mark missing pixels with NaN or infinity.
    return np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)


def _levels_of_sixteen_bits(low: float, high: float) -> Levels:
    """The levels of values in 16 bits, of which cameras often fill only a part.

    An image that uses at least half of 10, 12, 14 or 16 bits keeps its brightness: of 16 bits the
    high byte, as Pillow converts 16-bit RGB. The values of others, such as the temperatures of
    thermal cameras, are stretched; they would all be nearly black or one gray.
    """
    bits = next(depth for depth in _DEPTHS if high < 2**depth)
    is_flat = high == low
    if is_flat or high - low >= 2 ** (bits - 1):
        return Levels(0, 2**bits)
    return Levels(low, high - low, rounded=True)
