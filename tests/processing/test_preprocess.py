"""Reading every kind of image, and resizing as the published code does."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_core.config import PreprocessConfig
from dino_core.errors import DataError
from dino_core.processing.preprocess import (
    collate,
    decode_image,
    fit_size,
    load_image,
    preprocess,
    resized_size,
    to_rgb_array,
)

RED = (200, 30, 40)


def gradient(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


# --- sizes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [
        ((480, 640), (800, 1066)),  # 800 * 640 / 480 = 1066.67, truncated
        ((640, 480), (1066, 800)),
        ((427, 640), (800, 1199)),
        ((300, 640), (625, 1333)),  # the long side would be 1706: 1333 * 300 / 640 = 624.8
        ((800, 1000), (800, 1000)),
        ((1, 1), (800, 800)),
    ],
)
def test_published_size_rule(size_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(size_hw, PreprocessConfig()) == expected


@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [
        ((480, 640), (800, 1067)),  # 1066.67, rounded
        ((640, 480), (1067, 800)),
        ((300, 640), (625, 1333)),  # one factor for both, 1333 / 640: 624.8
        ((800, 1000), (800, 1000)),
        ((3, 5000), (1, 1333)),
    ],
)
def test_size_rule_of_detectron2_and_mmdet(
    size_hw: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert resized_size(size_hw, PreprocessConfig(rounding="nearest")) == expected


def test_plain_interpolation_looks_at_four_pixels_only() -> None:
    """Halving a stripe pattern by four: OpenCV picks neighbors, Pillow averages all."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, 1::4] = 255
    stripes[:, 2::4] = 255  # columns 0 255 255 0: OpenCV reads columns 1 and 2 of each four
    config = PreprocessConfig(short_side=16, max_side=16, mean=(0, 0, 0), std=(1, 1, 1))
    plain = preprocess(stripes, replace(config, interpolation="plain"))
    assert np.allclose(plain, 1.0)
    averaged = preprocess(stripes, config)[:, :, 2:-2]
    assert np.abs(averaged - 0.5).max() < 0.1


@pytest.mark.parametrize("size_hw", [(10, 20_000), (20_000, 10), (1, 100_000), (3, 5000)])
def test_thin_images_keep_at_least_one_pixel(size_hw: tuple[int, int]) -> None:
    height, width = resized_size(size_hw, PreprocessConfig(short_side=384, max_side=384))
    assert min(height, width) >= 1
    assert max(height, width) <= 2 * 384


def test_fit_size() -> None:
    assert fit_size((384, 288), (384, 384)) == (384, 288)
    assert fit_size((384, 288), (192, 384)) == (192, 144)
    assert fit_size((1, 5000), (384, 384)) == (1, 384)


# --- network input -----------------------------------------------------------


def test_preprocess_equals_pillow_and_plain_arithmetic() -> None:
    image = gradient(37, 61)
    config = PreprocessConfig(short_side=24, max_side=100)
    result = preprocess(image, config)
    resized = np.asarray(Image.fromarray(image).resize((39, 24), Image.Resampling.BILINEAR))
    expected = (resized.astype(np.float32) / 255 - np.float32(config.mean)) / np.float32(config.std)
    assert result.shape == (3, 24, 39)
    assert result.dtype == np.float32
    assert np.array_equal(result, expected.transpose(2, 0, 1).astype(np.float32))


def test_preprocess_to_a_given_size() -> None:
    assert preprocess(gradient(10, 10), PreprocessConfig(), (7, 9)).shape == (3, 7, 9)


@pytest.mark.parametrize("size_hw", [(1, 1), (10, 20_000), (20_000, 10)])
def test_extreme_images_become_network_input(size_hw: tuple[int, int]) -> None:
    result = preprocess(gradient(*size_hw), PreprocessConfig(short_side=64, max_side=64))
    assert np.isfinite(result).all()


def test_collate_pads_bottom_and_right() -> None:
    images, mask = collate([np.ones((3, 2, 4), np.float32), np.ones((3, 3, 2), np.float32)])
    assert images.shape == (2, 3, 3, 4)
    assert mask.shape == (2, 3, 4)
    assert mask[0].tolist() == [[False] * 4, [False] * 4, [True] * 4]
    assert mask[1].tolist() == [[False, False, True, True]] * 3
    assert np.array_equal(images[:, 0], (~mask).astype(np.float32))
    assert collate([np.ones((3, 2, 2), np.float32)], (5, 6))[0].shape == (1, 3, 5, 6)
    with pytest.raises(DataError, match="does not fit"):
        collate([np.ones((3, 9, 2), np.float32)], (5, 6))


# --- readable files ----------------------------------------------------------


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), (0, 0, 0))
    image.paste(RED, (0, 0, 20, 20))  # the left half is red
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated: turn 90 degrees clockwise to show
    path = save(tmp_path / "turned ä.jpg", image, exif=exif, quality=95)
    loaded = load_image(path)
    assert loaded.shape == (40, 20, 3)
    assert np.abs(loaded[5, 10].astype(int) - RED).max() < 20  # left became top
    assert loaded[35, 10].max() < 20


def test_cmyk(tmp_path: Path) -> None:
    cmyk = Image.new("RGB", (8, 8), RED).convert("CMYK")
    for name in ("a.jpg", "a.tif"):
        loaded = load_image(save(tmp_path / name, cmyk))
        assert np.abs(loaded[4, 4].astype(int) - RED).max() < 12


def test_sixteen_bit_gray_keeps_its_brightness(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    path = save(tmp_path / "a.png", Image.fromarray(values))
    assert load_image(path)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert load_image(path).shape == (1, 4, 3)


def test_sixteen_bit_rgb_png() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixel = b"\0" + struct.pack(">HHH", 65535, 32768, 257)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixel))
    assert decode_image(data + chunk(b"IEND", b""), "x")[0, 0].tolist() == [255, 128, 1]


def test_palette_with_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 1), 0)
    image.putpalette([*RED, 0, 0, 255])
    image.putpixel((1, 0), 1)
    loaded = load_image(save(tmp_path / "a.png", image, transparency=1))
    assert loaded[0, 0].tolist() == list(RED)
    assert loaded[0, 1].tolist() == [255, 255, 255]
    plain = load_image(save(tmp_path / "b.png", image))
    assert plain[0, 1].tolist() == [0, 0, 255]


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (*RED, 255))
    loaded = load_image(save(tmp_path / "a.png", image))
    assert loaded.tolist() == [[[255, 255, 255], list(RED)]]
    gray = Image.new("LA", (1, 1), (0, 128))
    assert load_image(save(tmp_path / "b.png", gray))[0, 0].tolist() == [127, 127, 127]


def test_gray_and_one_bit(tmp_path: Path) -> None:
    assert (
        load_image(save(tmp_path / "a.jpg", Image.new("L", (8, 8), 77)))[2, 2].tolist() == [77] * 3
    )
    assert (
        load_image(save(tmp_path / "b.png", Image.new("1", (1, 1), 1)))[0, 0].tolist() == [255] * 3
    )


def test_float_and_integer_tiff(tmp_path: Path) -> None:
    def first_row(values: np.ndarray) -> list[int]:
        path = save(tmp_path / "a.tif", Image.fromarray(values))
        return [int(v) for v in load_image(path)[0, :, 0]]

    assert first_row(np.array([[0, 0.5, 1, np.nan]], np.float32)) == [0, 128, 255, 0]
    assert first_row(np.array([[0, 7, 255]], np.float32)) == [0, 7, 255]
    assert first_row(np.array([[-10, 0, 10]], np.float32)) == [0, 128, 255]
    assert first_row(np.array([[0, 200]], np.int32)) == [0, 200]
    assert first_row(np.array([[0, 65535]], np.int32)) == [0, 255]


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, (0, 0, 255))]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert np.abs(load_image(path)[0, 0].astype(int) - RED).max() < 4


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (10, 20_000)])
def test_extreme_sizes_load(tmp_path: Path, size: tuple[int, int]) -> None:
    path = save(tmp_path / "a b.png", Image.new("RGB", size))
    assert load_image(path).shape == (size[1], size[0], 3)


# --- unreadable files --------------------------------------------------------


def jpeg_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(gradient(64, 64)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg: no such file"):
        load_image(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match="is a folder"):
        load_image(tmp_path)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(DataError, match=r"a\.jpg: the file is empty"):
        load_image(tmp_path / "a.jpg")


def test_text_named_as_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("hello world, no picture")
    with pytest.raises(DataError, match=r"a\.jpg: not an image \(23 bytes, starting with b'hello"):
        load_image(tmp_path / "a.jpg")


def test_truncated_jpeg_and_png(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes()[:-500])
    with pytest.raises(DataError, match=r"a\.jpg: the image is damaged or truncated"):
        load_image(tmp_path / "a.jpg")
    path = save(tmp_path / "a.png", Image.fromarray(gradient(64, 64)))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"a\.png: the image is damaged or truncated"):
        load_image(path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux")
def test_unreadable_file() -> None:
    with pytest.raises(DataError, match=r"/proc/self/mem: cannot be read \(Input/output error\)"):
        load_image("/proc/self/mem")  # refused even to root, whom permissions do not stop


# --- arrays ------------------------------------------------------------------


def test_arrays() -> None:
    gray = np.array([[0, 9]], np.uint8)
    assert to_rgb_array(gray).tolist() == [[[0] * 3, [9] * 3]]
    assert to_rgb_array(gray[:, :, None]).shape == (1, 2, 3)
    assert to_rgb_array(np.array([[True]])).tolist() == [[[255] * 3]]
    assert to_rgb_array(np.array([[65535]], np.uint16)).tolist() == [[[255] * 3]]
    assert to_rgb_array(np.array([[[0, 0, 0, 0]]], np.uint8)).tolist() == [[[255] * 3]]
    image = gradient(3, 4)
    assert np.array_equal(to_rgb_array(image), image)
    assert np.array_equal(to_rgb_array(Image.fromarray(image)), image)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), "channels come last"),
        (np.zeros((8, 8, 3), np.float32), "holds uint8 values, found float32"),
        (np.zeros((0, 8, 3), np.uint8), "no pixels"),
        (np.zeros(8, np.uint8), r"shape \(H, W\)"),
    ],
)
def test_wrong_arrays(array: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_rgb_array(array)


def test_other_types_are_refused() -> None:
    with pytest.raises(DataError, match="found str"):
        to_rgb_array("a.jpg")  # type: ignore[arg-type]
