"""Draws boxes and labels on images: readable at any size, one stable color per class."""

from __future__ import annotations

import colorsys
import hashlib
import io
import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dino_core.detections import Detections
from dino_core.errors import DinoError
from dino_core.processing.preprocess import UInt8Image

Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rect = tuple[float, float, float, float]  # x1, y1, x2, y2

_SMALLEST_SIDE = 400  # images with a shorter long side are enlarged, in pixels
_SMALLEST_FONT = 12
_UNICODE_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
    "msyh.ttc",
    "PingFang.ttc",
)
_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
MAX_JPEG_SIDE = 65_500  # JPEG_MAX_DIMENSION of libjpeg


def class_color(label: str) -> Color:
    """The color of a class: always the same for a name, vivid, neither near black nor white."""
    # A hash of the name, and not of the index, so that a class keeps its color across models.
    # Python's own hash() differs from run to run.
    digest = hashlib.sha256(label.encode()).digest()
    hue = int.from_bytes(digest[:2], "big") / 65536
    saturation, value = ((0.95, 0.95), (0.7, 1.0), (0.9, 0.75))[digest[2] % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_color(background: Color) -> Color:
    """Black or white, whichever contrasts more with `background`.

    The formula is the relative luminance of WCAG 2.1 (https://www.w3.org/TR/WCAG21). At 0.179 the
    contrast ratios (L + 0.05) / 0.05 with black and 1.05 / (L + 0.05) with white are equal.
    """
    linear = [
        (c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def draw_detections(
    image: UInt8Image, detections: Detections, *, enlarge: bool = True
) -> UInt8Image:
    """A copy of `image` with the boxes, labels and scores of `detections`; see `draw_boxes`.

    Args:
        image: (H, W, 3) RGB uint8.
        detections: Boxes in pixels of `image`.
        enlarge: As for `draw_boxes`.
    """
    texts = [
        f"{label} {score:.2f}"
        for label, score in zip(detections.labels, detections.scores, strict=True)
    ]
    return draw_boxes(image, detections.boxes_xyxy_px, detections.labels, texts, enlarge=enlarge)


def draw_boxes(
    image: UInt8Image,
    boxes_xyxy_px: NDArray[np.float32],
    labels: Sequence[str],
    texts: Sequence[str] | None = None,
    *,
    enlarge: bool = True,
) -> UInt8Image:
    """A copy of `image` with boxes in the colors of their classes.

    Args:
        image: (H, W, 3) RGB uint8.
        boxes_xyxy_px: (N, 4) in pixels of `image`, the most important first: it is drawn on top.
        labels: N class names.
        texts: N texts to write; None writes the class names.
        enlarge: First enlarge an image whose long side is below 400 pixels by an integer factor, so
            that labels are readable.
    """
    factor = max(1, math.ceil(_SMALLEST_SIDE / max(image.shape[:2]))) if enlarge else 1
    canvas = Image.fromarray(image)
    if factor > 1:
        canvas = canvas.resize((canvas.width * factor, canvas.height * factor))
    pen = ImageDraw.Draw(canvas)
    # Line width and font follow the geometric mean of the sides: a panorama's long side alone would
    # make them too large.
    typical = math.sqrt(canvas.width * canvas.height)
    line = max(1, round(typical / 300))
    size = max(_SMALLEST_FONT, round(typical / 36))
    # Text higher or wider than the image would hide all of it.
    size = min(size, max(6, int(canvas.height * 0.8)), max(6, canvas.width // 4))
    boxes = [tuple(float(v) * factor for v in box) for box in boxes_xyxy_px]
    # Later drawings cover earlier ones, so the most important box is drawn last.
    for box, label in reversed(list(zip(boxes, labels, strict=True))):
        _draw_box(pen, box, class_color(label), line, canvas.size)
    # Labels are placed best first, so that the best ones get the best places, and drawn in the
    # opposite order, so that the best ones lie on top where they overlap.
    placed: list[Rect] = []
    tags: list[tuple[Rect, str, Font, Color]] = []
    for box, text, label in zip(boxes, texts or labels, labels, strict=True):
        font, shown = _font_for(text, size)
        place = _place_label(pen, box, shown, font, canvas.size, placed)
        placed.append(place)
        tags.append((place, shown, font, class_color(label)))
    for place, shown, font, color in reversed(tags):
        pen.rectangle(place, fill=color)
        middle = (place[0] + _padding(font), (place[1] + place[3]) / 2)
        pen.text(middle, shown, fill=text_color(color), font=font, anchor="lm")
    return np.array(canvas)


def with_caption(image: UInt8Image, text: str, background: Color = (40, 40, 40)) -> UInt8Image:
    """`image` below a line of text; a text that is too long is cut off."""
    height, width = image.shape[:2]
    size = max(_SMALLEST_FONT, min(24, round(width / 30)))
    font, shown = _font_for(text, size)
    canvas = Image.new("RGB", (width, height + round(1.6 * size)), background)
    canvas.paste(Image.fromarray(image), (0, canvas.height - height))
    pen = ImageDraw.Draw(canvas)
    while shown and pen.textlength(shown, font=font) > width - size:
        shown = shown[:-1]
    middle = (size / 2, (canvas.height - height) / 2)
    pen.text(middle, shown, fill=text_color(background), font=font, anchor="lm")
    return np.array(canvas)


def _draw_box(
    pen: ImageDraw.ImageDraw,
    box: tuple[float, ...],
    color: Color,
    line: int,
    size: tuple[int, int],
) -> None:
    """Draw an outline inwards, so that it stays inside the image and shows even if it is tiny."""
    # At least one pixel is inside of the image, also of a box at its very edge.
    x1, y1 = min(box[0], size[0] - 1), min(box[1], size[1] - 1)
    x2, y2 = (
        min(max(box[2] - 1, x1 + line), size[0] - 1),
        min(max(box[3] - 1, y1 + line), size[1] - 1),
    )
    pen.rectangle((max(0, x1), max(0, y1), x2, y2), outline=color, width=line)


def _padding(font: Font) -> float:
    return max(1.0, getattr(font, "size", _SMALLEST_FONT) / 5)


def _place_label(
    pen: ImageDraw.ImageDraw,
    box: tuple[float, ...],
    text: str,
    font: Font,
    size: tuple[int, int],
    placed: list[Rect],
) -> Rect:
    """Where to put a label: above its box, else inside or below, where it covers no other label.

    If every position covers other labels, the one that covers the smallest area is returned.
    """
    pad = _padding(font)
    # Measured with an accented capital and a descender, so that all labels have the same height.
    _, top, _, bottom = pen.textbbox((0, 0), "Ág" + text, font=font, anchor="lt")
    width = pen.textlength(text, font=font) + 2 * pad
    height = bottom - top + pad
    x1, y1, x2, y2 = box
    corners = [
        (x1, y1 - height),
        (x1, y1),
        (x2 - width, y1 - height),
        (x2 - width, y1),
        (x1, y2),
        (x1, y2 - height),
        (x2 - width, y2 - height),
    ]
    best: tuple[float, Rect] | None = None
    # In order of preference: above, inside the top, the same at the right, below, inside the
    # bottom.
    for x, y in corners:
        # Sideways a label may always be moved into the image; vertically it would cover another
        # object, so the next corner is tried instead.
        x = max(0.0, min(x, size[0] - width))
        if not 0 <= y <= size[1] - height:
            continue
        rect = (x, y, x + width, y + height)
        covered = sum(_overlap(rect, other) for other in placed)
        if covered == 0:
            return rect
        if best is None or covered < best[0]:
            best = (covered, rect)
    if best is not None:
        return best[1]
    x = max(0.0, min(x1, size[0] - width))
    y = max(0.0, min(y1, size[1] - height))
    return (x, y, x + width, y + height)


def _overlap(a: Rect, b: Rect) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _font_for(text: str, size: int) -> tuple[Font, str]:
    """A font that has every character of `text`, and the text to write with it.

    Pillow's own font has only ASCII. If no installed font has all characters, the text is returned
    without accents, with a question mark in front where nothing readable would be left.
    """
    if text.isascii():
        return _ascii_font(size), text
    for name in _UNICODE_FONTS:
        font = _system_font(name, size)
        if font is not None and not any(_lacks(name, char) for char in text):
            return font, text
    # NFKD separates letters from their accents, which the encoding then drops.
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return _ascii_font(size), plain if plain[:1].strip() else f"?{plain}"


@lru_cache(maxsize=32)
def _ascii_font(size: int) -> Font:
    return ImageFont.load_default(size)


@lru_cache(maxsize=64)
def _system_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@lru_cache(maxsize=1024)
def _lacks(name: str, char: str) -> bool:
    """Whether the font lacks a glyph for `char` and would show a placeholder box."""
    font = _system_font(name, 20)
    if font is None:
        return True
    # Pillow cannot be asked for a font's characters. U+10FFFD is a private-use code point that no
    # font assigns, so its bitmap is the placeholder.
    unknown, shown = font.getmask("\U0010fffd"), font.getmask(char)
    return shown.size == unknown.size and list(shown) == list(unknown)


def encode_image(image: UInt8Image, suffix: str) -> bytes:
    """(H, W, 3) RGB uint8 as the bytes of an image file.

    Raises:
        DinoError: the format is unknown, or the image is too large for it.
    """
    name = _FORMATS.get(suffix.lower())
    if name is None:
        raise DinoError(
            f"images cannot be written as '{suffix}'", f"use one of {', '.join(_FORMATS)}"
        )
    if name == "JPEG" and max(image.shape[:2]) > MAX_JPEG_SIDE:
        raise DinoError(
            f"an image of {image.shape[1]}x{image.shape[0]} pixels is too large for JPEG, which "
            f"holds {MAX_JPEG_SIDE} pixels per side",
            "save it as .png",
        )
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, name, **({"quality": 92} if name == "JPEG" else {}))
    return buffer.getvalue()


def encode_jpeg_or_png(image: UInt8Image) -> tuple[str, bytes]:
    """(H, W, 3) RGB uint8 as a JPEG, or as a PNG where a side is too long for one.

    Returns:
        The suffix (".jpg" or ".png") and the bytes of the file.
    """
    suffix = ".jpg" if max(image.shape[:2]) <= MAX_JPEG_SIDE else ".png"
    return suffix, encode_image(image, suffix)
