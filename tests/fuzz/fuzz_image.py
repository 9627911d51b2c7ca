"""Image files of every decoder, read as prediction, training and `dino check` read them."""

from __future__ import annotations

import contextlib
import io
import resource
from pathlib import Path

import numpy as np
from fuzz.mutations import fuzz, main
from PIL import Image

from dino_core.data.check.images import examine
from dino_core.errors import DataError
from dino_core.processing.image_files import DECODERS, image_header
from dino_core.processing.preprocess import decode_image

_MOST_MEMORY = 8 << 30
_MODES = {"PNG": ("RGB", "RGBA", "P", "1", "I;16"), "TIFF": ("RGB", "F", "I;16", "CMYK"),
          "GIF": ("P",), "PPM": ("RGB", "1", "L"), "TGA": ("RGB", "RGBA")}  # fmt: skip
TOKENS = [
    b"%!PS-Adobe-3.0 EPSF-3.0\n", b"BLP2", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"IDAT", b"IEND",
    b"tRNS", b"eXIf", b"Exif\0\0MM\0*", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff",
    b"\xff\xd9", b"acTL", b"ftypavif", b"P6\n", b"9" * 5000, b"\0\1", b"II*\0", b"RIFF",
]  # fmt: skip


def _seeds() -> list[bytes]:
    values = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = []
    for format in DECODERS:
        for mode in _MODES.get(format, ("RGB",)):
            picture = Image.fromarray(values)
            wide = np.asarray(picture.convert("L"), np.uint16)
            picture = Image.fromarray(wide) if mode == "I;16" else picture.convert(mode)
            buffer = io.BytesIO()
            options = {"exif": exif} if format in ("JPEG", "PNG", "TIFF", "WEBP") else {}
            try:
                picture.save(buffer, format, **options)
            except (KeyError, OSError):  # Pillow was built without the format
                continue
            seeds.append(buffer.getvalue())
    progressive = io.BytesIO()
    Image.fromarray(values).save(progressive, "JPEG", progressive=True)
    return [*seeds, progressive.getvalue()]


def read(data: bytes, folder: Path) -> None:
    """Decode the content, its header, and what a check of data looks at."""
    path = folder / "a.jpg"
    path.write_bytes(data)
    examine(path)
    with contextlib.suppress(DataError):
        image_header(path)
    decode_image(data, "a.jpg")


def run(seconds: float, seed: int) -> list[str]:
    return fuzz(_seeds(), read, tokens=TOKENS, seconds=seconds, seed=seed)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    main(run)
