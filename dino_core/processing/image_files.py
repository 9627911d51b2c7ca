"""Image files by name and header: which suffixes are images, and how large an image is upright."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

from PIL import ExifTags, Image

_NAMES = "jpg jpeg jpe jfif png bmp dib webp tif tiff gif ppm pgm pbm pnm jp2 avif tga"
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())
"""Suffixes, in lower case, of the files in a folder that are taken as images."""

DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on damaged files."""

UPRIGHT = 1
_SIDEWAYS = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 (upright) to 8; 1 where none is stated.

    Raises:
        One of `DAMAGED`: the EXIF block is damaged.
    """
    stated = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    return stated if stated in range(1, 9) else UPRIGHT


def upright_size(path: Path) -> tuple[int, int] | None:
    """(width, height) of an image file as shown upright, from its header; None if it has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                width, height = image.size
                if exif_orientation(image) in _SIDEWAYS:
                    width, height = height, width
        except DAMAGED:
            return None
    return (width, height) if width > 0 and height > 0 else None
