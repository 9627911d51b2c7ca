"""Suffixes of images, and sizes from headers, against files that Pillow wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import ExifTags, Image, ImageOps

from dino_core.data.formats.images import list_images, with_suffixes
from dino_core.inference.sources import open_sources
from dino_core.processing.image_files import IMAGE_SUFFIXES, exif_orientation, upright_size
from dino_core.processing.preprocess import load_image

ONE_BIT_OR_GRAY = {".pbm": "1", ".pgm": "L"}


def written(folder: Path, suffix: str) -> Path:
    path = folder / f"{suffix[1:]}{suffix}"
    Image.new(ONE_BIT_OR_GRAY.get(suffix, "RGB"), (48, 32), "white").save(path)
    return path


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_images_of_every_suffix_are_found_and_read(tmp_path: Path, suffix: str) -> None:
    """By the readers of data sets and by prediction alike."""
    if suffix not in Image.registered_extensions():
        pytest.skip("this Pillow was built without the format")
    path = written(tmp_path, suffix)
    assert upright_size(path) == (48, 32)
    assert load_image(path).shape == (32, 48, 3)
    assert list_images(tmp_path) == [path]
    assert [item.source for item in open_sources([tmp_path]).items] == [str(path)]
    assert path.name in with_suffixes(path.stem)


def test_the_likeliest_suffixes_are_tried_first() -> None:
    names = with_suffixes("a")
    assert names[:2] == ["a.jpg", "a.png"]
    assert len(names) == len(set(names)) == 2 * len(IMAGE_SUFFIXES)


@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 mean nothing
def test_upright_sizes_are_those_that_pillow_turns_to(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (48, 32)).save(path, exif=exif)
    with Image.open(path) as image:
        assert upright_size(path) == ImageOps.exif_transpose(image).size
        assert exif_orientation(image) == (orientation if 1 <= orientation <= 8 else 1)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_a_damaged_file_has_no_size(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert upright_size(tmp_path / "a.png") is None
    assert upright_size(tmp_path / "missing.png") is None
