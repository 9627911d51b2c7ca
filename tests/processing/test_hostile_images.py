"""Image files that would start programs, fill the memory, wait for ever, or are not what they seem.

Sizes and bytes are those that the formats' specifications define, built here by hand.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from dino_core.data.check.images import examine
from dino_core.errors import DataError
from dino_core.processing.image_files import DECODERS, image_header, open_image, upright_size
from dino_core.processing.preprocess import decode_image, load_image, to_rgb_array

PACKAGE = Path(__file__).parents[2] / "dino_core"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    size: tuple[int, int],
    rows: bytes,
    *,
    depth: int = 8,
    color: int = 2,
    interlaced: bool = False,
) -> bytes:
    header = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, int(interlaced))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg(picture: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def noise(height: int = 64, width: int = 96) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(values).resize((width, height))


# --- only decoders of images may see a file ----------------------------------


def test_postscript_named_jpg_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow's own opener runs `gs`, here a script that leaves a mark."""
    mark = tmp_path / "mark"
    program = tmp_path / "bin/gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    path = tmp_path / "a.jpg"
    path.write_bytes(EPS)
    with pytest.raises(DataError, match=r"a\.jpg: not an image \(\d+ bytes, starting with b'%!PS"):
        load_image(path)
    assert upright_size(path) is None
    assert examine(path).problem == "unreadable-image"
    assert not mark.exists()


@pytest.mark.parametrize("format", ["ICO", "PCX", "ICNS", "SGI", "XBM", "MSP", "PDF", "EPS"])
def test_files_of_other_decoders_are_no_images(format: str) -> None:
    buffer = io.BytesIO()
    picture = Image.new("1" if format in ("XBM", "MSP") else "RGB", (32, 32))
    picture.save(buffer, format)
    with pytest.raises(DataError, match="not an image"):
        decode_image(buffer.getvalue(), "a.jpg")


def test_images_are_opened_in_one_place() -> None:
    opening = re.compile(r"\bImage\.open\(")
    files = [
        path.relative_to(PACKAGE).as_posix()
        for path in [*PACKAGE.rglob("*.py"), *PACKAGE.with_name("dino_cli").rglob("*.py")]
        if opening.search(path.read_text(encoding="utf-8"))
    ]
    assert files == ["processing/image_files.py"]
    assert not {"EPS", "PSD", "WMF", "MPEG", "GRIB", "HDF5"} & set(DECODERS)


# --- memory ------------------------------------------------------------------

MEASURE = r"""
import re, resource, sys
from dino_core.errors import DataError
from dino_core.processing.preprocess import load_image
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
try:
    print(load_image(sys.argv[1]).shape)
except DataError as error:
    print(error.message)
print(int(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1]) // 1024)
"""


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc for the peak")


def loaded(path: Path) -> tuple[str, int]:
    """What loading gives, and the peak of memory in MiB, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    *answer, peak = done.stdout.splitlines()
    return " ".join(answer), int(peak)


def zeros_png(size: tuple[int, int], channels: int, depth: int = 8, color: int = 2) -> bytes:
    """A PNG of zeros, made without holding its rows."""
    row = bytes(1 + size[0] * channels * depth // 8)
    pack = zlib.compressobj(9)
    body = b"".join(pack.compress(row) for _ in range(size[1])) + pack.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@needs_linux
@pytest.mark.parametrize("size", [(13_000, 13_000), (60_000, 60_000), (1, 100_000_000)])
def test_too_many_pixels_are_refused_before_memory_is_taken(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(size, b"", color=6))
    answer, peak = loaded(path)
    assert "at most 100 million pixels are decoded" in answer
    assert peak < 300


@needs_linux
def test_a_few_bytes_that_state_many_pixels_are_truncated(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png((1, 40_000_000), bytes(30), depth=1, color=0))
    answer, peak = loaded(path)
    assert "the image is truncated" in answer
    assert peak < 900


def large(folder: Path, kind: str) -> Path:
    """The largest images of their kinds that are decoded, or nearly."""
    if kind == "rgba":
        path = folder / "a.png"
        path.write_bytes(zeros_png((9_900, 9_900), 4, color=6))
        return path
    mode, side, name, options = {
        "float": ("F", 9_900, "a.tif", {"compression": "tiff_adobe_deflate"}),
        "turned": ("RGB", 9_900, "a.jpg", {}),
        "progressive": ("RGB", 7_300, "a.jpg", {"progressive": True}),
        "webp": ("RGB", 6_800, "a.webp", {"lossless": True, "method": 0}),
    }[kind]
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {**options, "exif": exif} if kind == "turned" else options
    Image.new(mode, (side, side)).save(folder / name, **options)
    return folder / name


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rgba", "float", "turned", "progressive", "webp"])
def test_the_largest_images_take_less_than_the_bound(tmp_path: Path, kind: str) -> None:
    answer, peak = loaded(large(tmp_path, kind))
    assert re.fullmatch(r"\(\d+, \d+, 3\)", answer)
    assert peak < 900


@needs_linux
def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(40 << 30)  # a hole: it takes no space on the disk
    answer, peak = loaded(path)
    assert "the file has 40,960 MiB; images of up to 512 MiB are read" in answer
    assert peak < 300


# --- what is not a regular file ----------------------------------------------


def special(folder: Path, kind: str) -> Path:
    path = folder / "a.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize(("kind", "found"), [("pipe", "a named pipe"), ("device", "a device")])
def test_pipes_and_devices_are_not_read(tmp_path: Path, kind: str, found: str) -> None:
    path = special(tmp_path, kind)
    for read in (load_image, image_header):
        with pytest.raises(DataError, match=rf"a\.jpg: not a regular file but {found}"):
            read(path)
    assert upright_size(path) is None
    assert examine(path).problem == "unreadable-image"


# --- damaged files -----------------------------------------------------------


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_a_damaged_avif_is_an_error_about_the_file() -> None:
    buffer = io.BytesIO()
    noise().save(buffer, "AVIF")
    data = buffer.getvalue()
    messages = []
    for at in range(0, len(data), 7):
        damaged = data[:at] + b"\xff\xff\xff" + data[at + 3 :]
        try:
            decode_image(damaged, "a.avif")
        except DataError as error:
            messages.append(error.message)
    assert messages and all(message.startswith("a.avif: ") for message in messages)


def test_blocks_that_fail_in_other_ways_are_errors_about_the_file() -> None:
    damaged = r"a\.jpg: the image is damaged or truncated \(\w+"
    for error in (RuntimeError("x"), NotImplementedError(), ZeroDivisionError("y"), zlib.error()):
        with pytest.raises(DataError, match=damaged), open_image(jpeg(noise()), "a.jpg"):
            raise error


def passes(values: np.ndarray) -> Iterator[bytes]:
    """The rows of an interlaced grayscale PNG, in the order of its seven passes."""
    for x, y, dx, dy in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):  # fmt: skip
        for row in values[y::dy, x::dx]:
            if row.size:
                yield b"\0" + row.tobytes()


@pytest.mark.parametrize("size_hw", [(9, 13), (1, 9), (8, 8), (2, 1)])
def test_interlaced_png_is_whole_or_refused(size_hw: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(1, 256, size_hw, np.uint8)
    rows = b"".join(passes(values))
    width_height = size_hw[::-1]
    whole = png(width_height, rows, color=0, interlaced=True)
    assert decode_image(whole, "x")[:, :, 0].tolist() == values.tolist()
    with pytest.raises(DataError, match=r"x: the image is (truncated|damaged or truncated)"):
        decode_image(png(width_height, rows[:-1], color=0, interlaced=True), "x")


def test_a_png_whose_data_end_early_is_refused(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + bytes([40, 50, 60] * 100) for _ in range(100))
    assert decode_image(png((100, 100), rows), "x").shape == (100, 100, 3)
    short = png((100, 100), rows[: 3 * 301])
    with pytest.raises(DataError, match="x: the image is truncated: its data end after 3% of the"):
        decode_image(short, "x")
    (tmp_path / "a.png").write_bytes(short)
    assert examine(tmp_path / "a.png").problem == "truncated-image"


@pytest.mark.parametrize(("mode", "color"), [("RGB", 0), ("L", 0), ("1", 0), ("P", 0), ("LA", 0)])
def test_a_png_that_ends_in_black_is_whole(tmp_path: Path, mode: str, color: int) -> None:
    path = tmp_path / "a.png"
    Image.new(mode, (37, 5), color).save(path)
    assert load_image(path).shape == (5, 37, 3)
    assert examine(path).problem == ""


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_without_end_marker_is_used(tmp_path: Path, mode: str, progressive: bool) -> None:
    data = jpeg(noise().convert(mode), progressive=progressive)
    assert data.endswith(b"\xff\xd9")
    whole = decode_image(data, "a.jpg")
    for cut in (data[:-2], data[:-1]):
        path = tmp_path / "a.jpg"
        path.write_bytes(cut)
        assert np.array_equal(load_image(path), whole)
        assert (examine(path).problem, examine(path).remark) == ("", "no-end-marker")


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_that_lacks_rows_is_refused(tmp_path: Path, mode: str) -> None:
    data = jpeg(noise().convert(mode))
    for cut in (16, 40, 200, len(data) // 2, len(data) - 700):
        with pytest.raises(DataError, match=r"x: (the image is damaged or truncated|not an image)"):
            decode_image(data[:-cut], "x")
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:-40])
    assert examine(path).problem == "truncated-image"


# --- more than eight bits ----------------------------------------------------


def gray_png(folder: Path, values: np.ndarray) -> Path:
    path = folder / "a.png"
    Image.fromarray(values.astype(np.uint16)).save(path)
    return path


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_fewer_bits_in_sixteen_are_not_black(tmp_path: Path, bits: int) -> None:
    ramp = np.linspace(0, 2**bits - 1, 512).reshape(2, 256)
    expected = (ramp.astype(np.uint16) >> (bits - 8)).astype(np.uint8)
    assert np.array_equal(load_image(gray_png(tmp_path, ramp))[:, :, 1], expected)
    assert np.array_equal(to_rgb_array(ramp.astype(np.uint16))[:, :, 1], expected)


@pytest.mark.parametrize(("low", "high"), [(29_315, 31_015), (2_900, 3_400), (7, 77), (100, 400)])
def test_temperatures_in_sixteen_bits_are_not_one_gray(tmp_path: Path, low: int, high: int) -> None:
    ramp = np.linspace(low, high, 101).round().reshape(1, 101)
    found = load_image(gray_png(tmp_path, ramp))[0, :, 0].astype(int)
    assert (found[0], found[-1]) == (0, 255)
    assert np.abs(found - np.linspace(0, 255, 101)).max() <= 3
