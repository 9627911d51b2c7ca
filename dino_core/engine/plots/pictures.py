"""batches.png and samples/: training images with boxes, and predictions beside ground truth."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino_core.config import PreprocessConfig
from dino_core.data.records import ImageRecord
from dino_core.evaluation.coco_metrics import PredictedBoxes
from dino_core.inference.draw import draw_boxes, with_caption
from dino_core.processing.postprocess import to_pixels
from dino_core.processing.preprocess import UInt8Image, load_image

_TILE = 480  # long side of an image in batches.png
_SAMPLE = 640  # long side of each half of a sample
_GAP = 8
_MOST_BOXES = 100


def network_view(
    image: NDArray[np.float32],
    padding_mask: NDArray[np.bool_],
    boxes_cxcywh: NDArray[np.float32],
    labels: Sequence[str],
    preprocess: PreprocessConfig,
) -> UInt8Image:
    """Draw one image of a batch with its boxes; padding is striped.

    Args:
        image: (3, H, W) normalized.
        padding_mask: (H, W), True on padding.
        boxes_cxcywh: (N, 4) normalized to the image without padding.
        labels: N class names.
        preprocess: How the image was normalized.
    """
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (preprocess.mean, preprocess.std))
    levels = np.clip(np.rint((image * std + mean) * 255), 0, 255)
    pixels = np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0))  # H, W, 3
    down, across = np.indices(padding_mask.shape)
    stripes = np.where((down + across) // 8 % 2, 90, 60).astype(np.uint8)
    pixels[padding_mask] = stripes[padding_mask][:, None]
    height, width = (int((~padding_mask).any(axis=axis).sum()) for axis in (1, 0))
    return _resized(pixels, to_pixels(boxes_cxcywh, (height, width)), labels, _TILE)


def grid(pictures: Sequence[UInt8Image], caption: str) -> UInt8Image:
    """Images side by side in rows, under one caption."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    width = max(p.shape[1] for p in pictures) + _GAP
    heights = [max(p.shape[0] for p in row) + _GAP for row in rows]
    page = np.full((sum(heights) + _GAP, columns * width + _GAP, 3), 255, np.uint8)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            left = _GAP + column * width
            page[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        top += height
    return with_caption(page, caption)


def png_bytes(image: UInt8Image) -> bytes:
    """(H, W, 3) RGB as the bytes of a PNG file, compressed little but in a third of the time."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=2)
    return buffer.getvalue()


def sample_sheet(
    record: ImageRecord, predicted: PredictedBoxes, names: Sequence[str], threshold: float
) -> UInt8Image:
    """A validation image twice: with its labels, and with detections scored `threshold` or more.

    Raises:
        DataError: the image cannot be read.
    """
    image = load_image(record.path)
    wanted = ~record.is_crowd
    labels = [names[i] for i in record.class_indices[wanted]]
    truth = _resized(image, record.boxes_xyxy_px[wanted], labels, _SAMPLE)
    kept = np.flatnonzero(predicted.scores >= threshold)[:_MOST_BOXES]
    found = [names[i] for i in predicted.class_indices[kept]]
    texts = [f"{n} {s:.2f}" for n, s in zip(found, predicted.scores[kept], strict=True)]
    drawn = _resized(image, predicted.boxes_xyxy_px[kept], found, _SAMPLE, texts)
    left = with_caption(truth, f"truth: {_objects(len(labels))}")
    right = with_caption(drawn, f"predicted, score {threshold:.2f} and above: {len(found)}")
    between = np.full((left.shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([left, between, right], axis=1)


def choose_samples(records: Sequence[ImageRecord], count: int) -> list[int]:
    """Choose images to show, always the same ones: many classes first, then spread over the split.

    Returns:
        At most `count` positions in `records`, ascending.
    """
    chosen: list[int] = []
    seen: set[int] = set()
    for index, record in enumerate(records):  # each shows a class that no earlier one shows
        fresh = set(record.class_indices.tolist()) - seen
        if fresh and len(chosen) < count // 2:
            chosen.append(index)
            seen |= fresh
    spread = np.linspace(0, max(0, len(records) - 1), 4 * count).round().astype(int).tolist()
    some = [i for i in dict.fromkeys(spread) if len(records[i].class_indices)] if records else []
    rest = [i for i in some if i not in chosen]
    missing = count - len(chosen)
    step = max(1.0, len(rest) / missing) if missing else 1.0
    chosen += [rest[int(n * step)] for n in range(missing) if int(n * step) < len(rest)]
    others = [i for i in range(len(records)) if i not in chosen]
    return sorted([*chosen, *others[: count - len(chosen)]])


def _objects(count: int) -> str:
    return f"{count} object{'' if count == 1 else 's'}"


def _resized(
    image: UInt8Image,
    boxes_xyxy_px: NDArray[np.float32],
    labels: Sequence[str],
    side: int,
    texts: Sequence[str] | None = None,
) -> UInt8Image:
    """Draw boxes on the image, resized before so that its long side is `side`.

    Drawing after resizing keeps labels legible. A tiny image keeps its size, because `draw_boxes`
    enlarges it by a whole factor.
    """
    longest = max(image.shape[:2])
    scale = side / longest if longest > side // 2 else 1.0
    if scale != 1:
        width, height = (max(1, round(v * scale)) for v in (image.shape[1], image.shape[0]))
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        image = np.asarray(resized)
    return draw_boxes(image, boxes_xyxy_px * np.float32(scale), labels, texts)
