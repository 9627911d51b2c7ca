"""From an image file to the network's input: decode, resize, normalize, pad.

Training, torch and ONNX Runtime all use these functions, so that a model sees the same pixels
everywhere. Nothing here imports torch.

The published weights were trained on images that Pillow resized: bilinear with antialiasing, on
uint8 (docs/ALGORITHM.md, 28). The bilinear resizing of OpenCV and the default one of torch have no
antialiasing and give other pixels. mmdet trained with OpenCV, so its weights use that here too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino_core.config import PreprocessConfig
from dino_core.errors import DataError
from dino_core.processing.image_files import (
    DAMAGED,
    SIDEWAYS,
    UPRIGHT,
    ImageFileError,
    exif_orientation,
    open_image,
    read_image_file,
)
from dino_core.processing.levels import Levels, levels_of, strips
from dino_core.processing.whole_images import require_all_rows, with_end_marker

UInt8Image = NDArray[np.uint8]

_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")


def load_image(path: str | Path) -> UInt8Image:
    """Read an image file as an upright (H, W, 3) RGB uint8 array.

    EXIF orientation is applied. CMYK, palette, grayscale, 1-bit and 16-bit images are converted to
    RGB, transparent pixels are composited on white, and of an animation the first frame is used.

    Raises:
        DataError: the file is missing, unreadable, empty, truncated, too large or not an image.
    """
    path = Path(path)
    return decode_image(read_image_file(path), str(path))


def decode_image(data: bytes, where: str) -> UInt8Image:
    """As `load_image`, from the bytes of an image file.

    Args:
        data: Content of the file.
        where: Its path or URL, for errors.

    Raises:
        DataError: the bytes are empty, damaged, too large an image or not an image.
    """
    try:
        return _decoded(data, where)
    except ImageFileError:
        repaired = with_end_marker(data, where)
        if repaired is None:
            raise
        return _decoded(repaired, where)


def _decoded(data: bytes, where: str) -> UInt8Image:
    with open_image(data, where) as image:
        image.load()
        require_all_rows(image, data, where)
        try:
            return to_rgb_array(image)
        except ImageFileError:
            raise
        # From `to_rgb_array`, which does not know the file.
        except DataError as error:
            raise ImageFileError(where, error.message, error.hint) from error


def to_rgb_array(image: Image.Image | NDArray[np.generic]) -> UInt8Image:
    """Convert an image in memory to (H, W, 3) RGB uint8.

    Args:
        image: A Pillow image, whose EXIF orientation is applied, or an array of shape (H, W) or
            (H, W, 1|3|4) and dtype uint8, bool or uint16. The channels of an array are RGB(A); an
            image that OpenCV read is BGR and has to be reversed first.

    Raises:
        DataError: an array of another shape or dtype, or an image without pixels.
    """
    if isinstance(image, Image.Image):
        return _pillow_to_rgb(image)
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"an image is a path, a Pillow image or a NumPy array, found {type(image).__name__}"
        )
    array = np.asarray(image)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise DataError(
            f"an image array has shape (H, W) or (H, W, 3), found {array.shape}",
            "channels come last",
        )
    if 0 in array.shape:
        raise DataError(f"an image array of shape {array.shape} has no pixels")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16:
        array = levels_of(array).to_eight_bits(array)
    elif array.dtype != np.uint8:
        raise DataError(
            f"an image array holds uint8 values, found {array.dtype}",
            "multiply values in [0, 1] by 255 and convert with .astype('uint8')",
        )
    if array.ndim == 2 or array.shape[2] == 1:
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    elif array.shape[2] == 4:
        return _on_white(Image.fromarray(np.ascontiguousarray(array)))
    return np.ascontiguousarray(array, dtype=np.uint8)


def _pillow_to_rgb(image: Image.Image) -> UInt8Image:
    if 0 in image.size:
        raise DataError(f"an image of {image.width}x{image.height} pixels has no content")
    orientation = UPRIGHT
    with contextlib.suppress(*DAMAGED):  # An image with a damaged EXIF block is still an image.
        orientation = exif_orientation(image)
    image.load()
    # Pillow's own conversion clips these modes at 255, so 16-bit images would become white.
    levels = levels_of(image) if image.mode.startswith(("I", "F")) else None
    size_hw = (image.width, image.height) if orientation in SIDEWAYS else image.size[::-1]
    rgb = np.empty((*size_hw, 3), np.uint8)
    stored = _as_stored(rgb, orientation)
    for top, strip in strips(image):
        stored[top : top + strip.height] = _strip_to_rgb(strip, levels)
    return rgb


def _strip_to_rgb(image: Image.Image, levels: Levels | None) -> UInt8Image:
    if levels is not None:
        return to_rgb_array(levels.to_eight_bits(np.asarray(image)))
    # Palette and gray PNGs may name one color as transparent instead of having an alpha channel.
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        return _on_white(image.convert("RGBA"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _as_stored(upright: UInt8Image, orientation: int) -> UInt8Image:
    """A view of upright pixels (H, W, 3) in the order in which a file of that orientation has them.

    The view is written to, so that the pixels are turned without a copy of all.
    """
    if orientation in SIDEWAYS:
        upright = upright.transpose(1, 0, 2)
    if orientation in (2, 3, 7, 8):
        upright = upright[:, ::-1]
    return upright[::-1] if orientation in (3, 4, 6, 7) else upright


def _on_white(image: Image.Image) -> UInt8Image:
    """Composite RGBA on white, as image viewers do.

    Dropping the alpha channel instead would show the arbitrary colors of transparent pixels.
    """
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.array(Image.alpha_composite(white, image).convert("RGB"))


def resized_size(size_hw: tuple[int, int], config: PreprocessConfig) -> tuple[int, int]:
    """The (height, width) that an image of `size_hw` is resized to; each is at least 1.

    The short side becomes `short_side`, or less where the long side would exceed `max_side`. The
    exact rule decides between sizes that differ by one pixel, so it follows the code that the
    weights were trained with: `get_size_with_aspect_ratio` of DETR and DINO (docs/ALGORITHM.md,
    28), or with `rounding` "nearest" the rule of detectron2 (`ResizeShortestEdge`) and mmcv
    (`rescale_size`), which scales both sides by one factor and rounds half up.

    As in the published code, the long side of a very thin image can exceed `max_side`, because its
    short side is rounded first.
    """
    height, width = size_hw
    short, long = min(height, width), max(height, width)
    if config.rounding == "nearest":
        scale = min(config.short_side / short, config.max_side / long)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    return published_size(size_hw, config.short_side, config.max_side)


def published_size(
    size_hw: tuple[int, int], short_side: int, max_side: int | None
) -> tuple[int, int]:
    """The (height, width) by the rule of the official code, including its order of rounding.

    Args:
        size_hw: Height and width of the image.
        short_side: What the short side becomes.
        max_side: Limit of the long side; None for no limit.
    """
    height, width = size_hw
    short, long = min(height, width), max(height, width)
    new_short = short_side
    if max_side is not None and long / short * new_short > max_side:
        new_short = round(max_side * short / long)
    if new_short < 1:  # so thin that the published rule gives 0, which no network accepts
        new_short, new_long = 1, max_side or long
    elif new_short == short:
        new_long = long
    else:
        new_long = max(1, int(new_short * long / short))  # truncated, not rounded
    return (new_long, new_short) if width < height else (new_short, new_long)


def at_image_size(config: PreprocessConfig, image_size: int | None) -> PreprocessConfig:
    """The same preprocessing with all sizes scaled so that the long side is `image_size`.

    `config` is returned as it is where `image_size` is None.
    """
    if image_size is None or image_size == config.max_side:
        return config
    # The ratio of the two limits is part of what the model was trained with, so both scale.
    short = max(1, round(config.short_side * image_size / config.max_side))
    canvas = None
    if config.canvas is not None:
        height, width = (round(side * image_size / config.max_side) for side in config.canvas)
        canvas = (height, width)
    return replace(config, short_side=short, max_side=image_size, canvas=canvas)


def fit_size(size_hw: tuple[int, int], limit_hw: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the same aspect ratio, up to `size_hw`, that fits into `limit_hw`."""
    scale = min(1.0, limit_hw[0] / size_hw[0], limit_hw[1] / size_hw[1])
    if scale == 1.0:
        return size_hw
    height, width = (
        max(1, min(limit, round(side * scale)))
        for side, limit in zip(size_hw, limit_hw, strict=True)
    )
    return height, width


def preprocess(
    image: UInt8Image, config: PreprocessConfig, size_hw: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Resize and normalize one image.

    Args:
        image: (H, W, 3) RGB uint8, upright.
        config: Sizes, interpolation, mean and standard deviation.
        size_hw: Size (h, w) to resize to; None resizes to `resized_size`.

    Returns:
        (3, h, w) float32, the network's input before padding.
    """
    height, width = size_hw or resized_size((image.shape[0], image.shape[1]), config)
    if (height, width) != image.shape[:2]:
        image = _resized(image, width, height, config)
    return normalize(image, config)


def _resized(image: UInt8Image, width: int, height: int, config: PreprocessConfig) -> UInt8Image:
    if config.interpolation == "plain":
        import cv2  # imported here because it takes longer than all other imports together

        plain = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(plain, np.uint8)
    pillow = Image.fromarray(image)
    return np.asarray(pillow.resize((width, height), Image.Resampling.BILINEAR))


def normalize(image: UInt8Image, config: PreprocessConfig) -> NDArray[np.float32]:
    """(H, W, 3) uint8 to (3, H, W) float32: (value / 255 - mean) / std per channel."""
    # A uint8 channel has only 256 values. Looking their results up is several times faster than
    # computing them per pixel, and gives the same bits.
    table = _normalized_levels(config.mean, config.std)
    result = np.empty((3, *image.shape[:2]), np.float32)
    for channel in range(3):
        # With the default mode="raise", np.take checks the indices and buffers `out` in a copy. No
        # uint8 value is out of range, so "wrap" only skips that.
        np.take(table[channel], image[:, :, channel], out=result[channel], mode="wrap")
    return result


@lru_cache(maxsize=8)
def _normalized_levels(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """(3, 256) float32: the normalized value of every uint8 level, computed in float32."""
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    return np.stack(
        [(levels - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True)]
    )


def collate(
    images: Sequence[NDArray[np.float32]], size_hw: tuple[int, int] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Stack images into one batch, with zero padding at the bottom and right.

    Zero is the mean color here, because the images are already normalized.

    Args:
        images: B images (3, h, w) of any sizes.
        size_hw: Height and width (H, W) of the batch; None takes the largest of the images.

    Returns:
        images (B, 3, H, W) float32 and padding_mask (B, H, W) bool, True on padding.

    Raises:
        DataError: an image is larger than `size_hw`.
    """
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    if size_hw is not None:
        if height > size_hw[0] or width > size_hw[1]:
            raise DataError(
                f"an image of {height}x{width} (height x width) does not fit into {size_hw}"
            )
        height, width = size_hw
    # All padding until proven otherwise: the loop below clears the mask under each image.
    batch = np.zeros((len(images), 3, height, width), np.float32)
    mask = np.ones((len(images), height, width), np.bool_)
    for index, image in enumerate(images):
        batch[index, :, : image.shape[1], : image.shape[2]] = image
        mask[index, : image.shape[1], : image.shape[2]] = False
    return batch, mask
