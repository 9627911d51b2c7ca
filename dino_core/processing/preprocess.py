"""From an image file to the network's input: decode, resize, normalize, pad.

Training, torch and ONNX Runtime all use these functions, so that a model sees the same pixels
everywhere. Nothing here imports torch.

The published weights were trained on images that Pillow resized: bilinear with antialiasing, on
uint8 (docs/ALGORITHM.md, 28). The bilinear resizing of OpenCV and the default one of torch have no
antialiasing and give other pixels. mmdet trained with OpenCV, so its weights use that here too.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dino_core.config import PreprocessConfig
from dino_core.errors import DataError
from dino_core.processing.image_files import UPRIGHT, exif_orientation

UInt8Image = NDArray[np.uint8]

_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
_SIGNATURE_BYTES = 12


def load_image(path: str | Path) -> UInt8Image:
    """Read an image file as an upright (H, W, 3) RGB uint8 array.

    EXIF orientation is applied. CMYK, palette, grayscale, 1-bit and 16-bit images are converted to
    RGB, transparent pixels are composited on white, and of an animation the first frame is used.

    Raises:
        DataError: the file is missing, unreadable, empty, truncated, too large or not an image.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, expected an image file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    return decode_image(data, str(path))


def decode_image(data: bytes, where: str) -> UInt8Image:
    """As `load_image`, from the bytes of an image file.

    Args:
        data: Content of the file.
        where: Its path or URL, for errors.

    Raises:
        DataError: the bytes are empty, damaged, too large an image or not an image.
    """
    if not data:
        raise DataError(f"{where}: the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of unusual files that it can read
        try:
            with Image.open(io.BytesIO(data)) as image:
                # Pillow decodes lazily. Here, truncated data raises its error inside of this block.
                image.load()
                return to_rgb_array(image)
        except UnidentifiedImageError:
            start = data[:_SIGNATURE_BYTES]
            raise DataError(
                f"{where}: not an image ({len(data)} bytes, starting with {start!r})",
                "supported are JPEG, PNG, WebP, BMP, TIFF, GIF and others that Pillow reads",
            ) from None
        except Image.DecompressionBombError as error:
            # Pillow warns above MAX_IMAGE_PIXELS and refuses above twice as many.
            limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            raise DataError(
                f"{where}: the image has more than {limit:,} pixels", "cut it into smaller images"
            ) from error
        # From `to_rgb_array`, which does not know the file.
        except DataError as error:
            raise DataError(f"{where}: {error.message}", error.hint) from error
        except MemoryError as error:
            raise DataError(f"{where}: not enough memory to decode the image") from error
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError) as error:
            raise DataError(
                f"{where}: the image is damaged or truncated ({error})",
                "replace or remove the file",
            ) from error


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
    elif array.dtype == np.uint16:  # the high byte, as Pillow converts 16-bit RGB
        array = (array >> 8).astype(np.uint8)
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
    # An image with a damaged EXIF block is still an image; it is taken as upright.
    with contextlib.suppress(ValueError, TypeError, KeyError, SyntaxError, OSError):
        if exif_orientation(image) != UPRIGHT:  # exif_transpose makes a copy even of upright images
            image = ImageOps.exif_transpose(image)
    # Pillow's own conversion clips these modes at 255, so 16-bit images would become white.
    if image.mode.startswith(("I", "F")):
        return to_rgb_array(_to_eight_bits(image))
    # Palette and gray PNGs may name one color as transparent instead of having an alpha channel.
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        return _on_white(image.convert("RGBA"))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _on_white(image: Image.Image) -> UInt8Image:
    """Composite RGBA on white, as image viewers do.

    Dropping the alpha channel instead would show the arbitrary colors of transparent pixels.
    """
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.array(Image.alpha_composite(white, image).convert("RGB"))


def _to_eight_bits(image: Image.Image) -> UInt8Image:
    """Convert a grayscale image of 16-bit, 32-bit or float values to uint8; white stays white.

    16-bit values keep their high byte, as in Pillow's conversion of 16-bit RGB. 32-bit integers
    that fit in 8 or 16 bits are treated as such. Floats in [0, 1] are multiplied by 255. Values of
    any other range are stretched so that the minimum becomes 0 and the maximum 255.
    """
    if image.mode.startswith("I;16"):
        return (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
    # Float TIFFs of scientific data often mark missing pixels with NaN or infinity.
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1 and image.mode == "F":
        return np.rint(values * 255).astype(np.uint8)
    if low >= 0 and high <= 255:
        return np.rint(values).astype(np.uint8)
    if low >= 0 and high <= 65535 and image.mode == "I":
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    return np.rint((values - low) * (255 / (high - low))).astype(np.uint8)


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
    # The rule of the official code, including its order of rounding.
    new_short = config.short_side
    if long / short * new_short > config.max_side:
        new_short = round(config.max_side * short / long)
    if new_short < 1:  # so thin that the published rule gives 0, which no network accepts
        new_short, new_long = 1, config.max_side
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
