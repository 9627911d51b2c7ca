"""Image files: their suffixes, the one way to open them, and how large an image is upright.

Files come from anywhere, so only the decoders of `DECODERS` may see them: Pillow has others that
start external programs (PostScript is rendered by Ghostscript), whatever suffix a file has.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError

from dino_core.errors import DataError
from dino_core.files import require_regular_file

_NAMES = "jpg jpeg jpe jfif png bmp dib webp tif tiff gif ppm pgm pbm pnm jp2 avif tga"
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())
"""Suffixes, in lower case, of the files in a folder that are taken as images."""

DECODERS = (
    "JPEG", "MPO", "PNG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF", "TGA",
)  # fmt: skip
"""Pillow's names of the decoders that may open an image."""

DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    BufferError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise on damaged files."""

MOST_FILE_BYTES = 1 << 29
"""Larger files are not read: no image within the limit of pixels needs as much."""

_MOST_MEMORY = 700_000_000  # bytes while an image is decoded and made RGB
_MEMORY_PER_PIXEL = 7  # four in Pillow, three in the result
_MEMORY_PER_ROW = 8  # a pointer
_MEMORY_OF_DECODER = {"WEBP": 15, "AVIF": 15, "JPEG2000": 36}  # These hold all of it several times.
_MEMORY_PROGRESSIVE = 13  # The coefficients of a progressive JPEG are all kept until its end.

UPRIGHT = 1
SIDEWAYS = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""

_SIGNATURE_BYTES = 12
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_SUPPORTED = "supported are JPEG, PNG, WebP, AVIF, BMP, TIFF, GIF, JPEG 2000, PPM and TGA"
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
HEIC_SUFFIXES = (".heic", ".heif")
HEIC_REMEDY = (
    "convert HEIC to JPEG first, e.g. `heif-convert a.heic a.jpg` or `sips -s format jpeg`"
)
LFS_REMEDY = "`git lfs pull` in its repository fetches the image itself"


class ImageFileError(DataError):
    """A file cannot be used as an image.

    Attributes:
        problem: Kind of fault: "truncated-image" where a part of the file is missing, else
            "unreadable-image".
        reason: What is wrong, without the place; of damaged files what the decoder says.
    """

    def __init__(
        self,
        where: str,
        reason: str,
        hint: str = "",
        problem: Literal["unreadable-image", "truncated-image"] = "unreadable-image",
    ) -> None:
        super().__init__(f"{where}: {reason}", hint)
        self.problem = problem
        self.reason = reason


class ImageHeader(NamedTuple):
    """Width and height of an image file as shown upright, and its EXIF orientation."""

    width: int
    height: int
    orientation: int


def read_image_file(path: Path) -> bytes:
    """The content of an image file.

    Raises:
        ImageFileError: there is no file, it is a folder, a pipe or a device, or too large.
    """
    try:
        if path.is_dir():
            raise ImageFileError(str(path), "is a folder, expected an image file")
        size = require_regular_file(path).st_size
        if size > MOST_FILE_BYTES:
            limit = f"images of up to {MOST_FILE_BYTES >> 20:,} MiB are read"
            raise ImageFileError(str(path), f"the file has {size >> 20:,} MiB; {limit}")
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageFileError(str(path), "no such file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageFileError(str(path), f"cannot be read ({reason})") from error


@contextlib.contextmanager
def open_image(source: Path | bytes, where: str = "") -> Iterator[Image.Image]:
    """Open an image, from a file or from the bytes of one, for the length of a block.

    Its size is checked before memory is taken. Whatever the decoder raises in the block, which is
    where most of the file is decoded, is raised as an ImageFileError.

    Args:
        source: The file or its content.
        where: The path or URL of bytes, for errors.

    Raises:
        ImageFileError: there is no regular file, it is empty, no image, damaged or too large.
    """
    where = where or str(source) if isinstance(source, Path) else where
    if not source:
        raise ImageFileError(where, "the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of unusual files that it can read.
        try:
            if isinstance(source, Path):
                require_regular_file(source)
            file = source if isinstance(source, Path) else io.BytesIO(source)
            with Image.open(file, formats=_decoders()) as image:
                _require_memory(image, where)
                yield image
        except DAMAGED as error:
            raise _image_error(error, source, where) from error


def _decoders() -> list[str]:
    """The decoders that this Pillow has; AVIF and others are missing in some."""
    if any(name not in Image.OPEN for name in DECODERS):
        Image.init()
    return [name for name in DECODERS if name in Image.OPEN]


def _require_memory(image: Image.Image, where: str) -> None:
    needed = _MEMORY_OF_DECODER.get(image.format or "", _MEMORY_PER_PIXEL)
    if image.info.get("progressive") or image.info.get("progression"):
        needed = _MEMORY_PROGRESSIVE
    if image.width * image.height * needed + image.height * _MEMORY_PER_ROW > _MOST_MEMORY:
        raise _too_large(where, f"{image.width:,}x{image.height:,} pixels", needed)


def _too_large(where: str, found: str, needed: int = _MEMORY_PER_PIXEL) -> ImageFileError:
    limit = f"{_MOST_MEMORY / needed / 1e6:,.0f} million pixels"
    return ImageFileError(
        where, f"the image has {found}, at most {limit} are decoded", "cut it into smaller images"
    )


def _image_error(error: BaseException, source: Path | bytes, where: str) -> ImageFileError:
    """What the decoder raised, as an error for people."""
    if isinstance(error, UnidentifiedImageError):
        return _unidentified(source, where)
    if isinstance(error, FileNotFoundError):
        return ImageFileError(where, "no such file")
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(where, "too many pixels")
    if isinstance(error, MemoryError):
        return ImageFileError(where, "not enough memory to decode the image")
    words = " ".join(str(error).split()) or type(error).__name__
    low = words.lower()
    cut = isinstance(error, EOFError) or "truncated" in low or "incomplete" in low
    found = ImageFileError(
        where,
        f"the image is damaged or truncated ({words:.200})",
        "replace or remove the file",
        "truncated-image" if cut else "unreadable-image",
    )
    found.reason = words
    return found


def _unidentified(source: Path | bytes, where: str) -> ImageFileError:
    """The error for content that no decoder knows; content that others use is named."""
    if isinstance(source, Path):
        size = source.stat().st_size
        with source.open("rb") as file:
            start = file.read(64)
    else:
        size, start = len(source), source[:64]
    if not size:
        return ImageFileError(where, "the file is empty")
    if is_lfs_pointer(start):
        return ImageFileError(where, "a Git LFS pointer, not the image itself", LFS_REMEDY)
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS:
        return ImageFileError(where, "an image in HEIC format, which is not read", HEIC_REMEDY)
    found = f"{size} bytes, starting with {start[:_SIGNATURE_BYTES]!r}"
    return ImageFileError(where, f"not an image ({found})", _SUPPORTED)


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that begins with these bytes is one that Git LFS left in place of another."""
    return start.startswith(_LFS_POINTER)


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 (upright) to 8; 1 where none is stated.

    Raises:
        One of `DAMAGED`: the EXIF block is damaged.
    """
    stated = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    return stated if stated in range(1, 9) else UPRIGHT


def image_header(path: Path) -> ImageHeader:
    """Size and orientation of an image file, without decoding it.

    Raises:
        ImageFileError: as for `open_image`; or the image has no pixels.
    """
    with open_image(path) as image:
        width, height = image.size
        orientation = UPRIGHT
        with contextlib.suppress(*DAMAGED):  # An image with a damaged EXIF block is still one.
            orientation = exif_orientation(image)
    if width < 1 or height < 1:
        raise ImageFileError(str(path), f"the image has {width}x{height} pixels")
    if orientation in SIDEWAYS:
        width, height = height, width
    return ImageHeader(width, height, orientation)


def upright_size(path: Path) -> tuple[int, int] | None:
    """(width, height) of an image file as shown upright, from its header; None if it has none."""
    try:
        header = image_header(path)
    except DataError:
        return None
    return header.width, header.height
