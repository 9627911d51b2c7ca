"""Whether an image file holds all rows of its image: files cut short, and those that only seem so.

Pillow refuses a JPEG whose last two bytes are missing although all rows are there, and takes a PNG
whose data end after a few rows as complete.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from dino_core.processing.image_files import ImageFileError, open_image

JPEG_END = b"\xff\xd9"
_JPEG_START = b"\xff\xd8\xff"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_FILLINGS = (b"", b"\x55" * 32, b"\xaa" * 32)  # entropy-coded data of three different meanings
_BLOCK = 1 << 20  # bytes that are inflated at a time
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's color type
_ADAM7 = (  # first column and row of each pass, and the steps to the next
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # fmt: skip


def with_end_marker(data: bytes, where: str) -> bytes | None:
    """A JPEG that lacks only its end marker, with one; None for any other file.

    Where rows are missing, the decoder takes what follows for more of the picture. So nothing is
    missing if the picture stays the same whatever is put between the data and an end marker.
    """
    if not data.startswith(_JPEG_START) or data.endswith(JPEG_END):
        return None
    data = data.removesuffix(b"\xff")
    pictures = set()
    for filling in _FILLINGS:
        try:
            with open_image(data + filling + JPEG_END, where) as image:
                image.draft("RGB", (1, 1))  # An eighth of the size still decodes all of the data.
                image.load()
                pictures.add(image.tobytes())
        except ImageFileError:
            return None
    return data + JPEG_END if len(pictures) == 1 else None


def require_all_rows(image: Image.Image, data: bytes, where: str) -> None:
    """Refuse a decoded PNG whose data end before its last row.

    Pillow leaves the rows that are missing at zero. So only an image that ends in a row of zeros
    has its data inflated again, to be counted.

    Raises:
        ImageFileError: rows are missing.
    """
    if not data.startswith(_PNG_START):
        return
    rows = (image.crop((0, y, image.width, y + 1)) for y in _last_rows(image.height))
    if all(any(row.tobytes()) for row in rows) and image.height > 1:
        return
    expected, found = _bytes_of_rows(data), 0
    for size in _inflated(data):
        found += size
        if found >= expected:
            return
    share = f"{100 * found / expected:.0f}%"
    raise ImageFileError(
        where,
        f"the image is truncated: its data end after {share} of the rows",
        "copy or download the file again",
        "truncated-image",
    )


def _last_rows(height: int) -> range:
    """The last row, and the one before it, since passes of an interlaced image end with either."""
    return range(max(0, height - 2), height)


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view, at = memoryview(data), len(_PNG_START)
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        yield bytes(view[at + 4 : at + 8]), view[at + 8 : at + 8 + length]
        at += 12 + length


def _bytes_of_rows(data: bytes) -> int:
    """How many bytes the inflated data of a PNG must have: each row has a leading filter byte."""
    header = next(body for kind, body in _chunks(data) if kind == b"IHDR")
    width, height, depth, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", header)
    bits = depth * _CHANNELS[color]
    if not interlaced:
        return int(height * (1 + (width * bits + 7) // 8))
    total = 0
    for x, y, step_x, step_y in _ADAM7:
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _inflated(data: bytes) -> Iterator[int]:
    """The number of bytes of each block of the inflated data."""
    inflate = zlib.decompressobj()
    for kind, body in _chunks(data):
        piece = bytes(body) if kind == b"IDAT" else b""
        while piece and not inflate.eof:
            yield len(inflate.decompress(piece, _BLOCK))
            piece = inflate.unconsumed_tail
    yield len(inflate.flush())
