"""The 12 COCO numbers and each class's AP, computed by pycocotools itself (`COCOeval`).

The library gets its input from memory and its printed output is discarded. Matching, crowd and area
rules are its own, so the numbers are comparable with published ones. Per-class values are read from
the same accumulated precision table as the overall ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dino_core.data.records import ImageRecord
from dino_core.detections import ClassMap

_STATS = (  # the order of COCOeval.stats
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)


class PredictedBoxes(Protocol):
    """One image's predictions: `processing.postprocess.Decoded` or anything with its arrays."""

    @property
    def boxes_xyxy_px(self) -> NDArray[np.float32]: ...
    @property
    def scores(self) -> NDArray[np.float32]: ...
    @property
    def class_indices(self) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class ClassMetrics:
    """The numbers of one class.

    Attributes:
        ap: Mean AP over IoU 0.50:0.05:0.95; None without ground truth.
        ap50: AP at IoU 0.50; None without ground truth.
        images: Images with at least one box of the class.
        boxes: Boxes of the class, without crowd regions.
    """

    ap: float | None
    ap50: float | None
    images: int
    boxes: int


@dataclass(frozen=True)
class Metrics:
    """COCO's 12 numbers as fractions; None where nothing could be measured (-1 in pycocotools).

    Attributes:
        ap: Mean AP over IoU 0.50:0.05:0.95.
        ap50: AP at IoU 0.50.
        ap75: AP at IoU 0.75.
        ap_small: AP of ground truth of less than 32**2 pixels.
        ap_medium: AP of ground truth of 32**2 to 96**2 pixels.
        ap_large: AP of ground truth of more than 96**2 pixels.
        ar_1: Recall with at most 1 detection per class and image.
        ar_10: Recall with at most 10.
        ar_100: Recall with at most 100.
        ar_small: Recall of small ground truth, with at most 100.
        ar_medium: Recall of medium ground truth, with at most 100.
        ar_large: Recall of large ground truth, with at most 100.
        per_class: Class name to its numbers, in class order.
        images: Images evaluated.
        ms_per_image: Milliseconds of prediction per image; None where it was not timed.
        warnings: What was left out of the data, and classes that the model lacks, one sentence
            each; `evaluate` fills them in, and they are not part of `to_dict`.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar_1: float | None
    ar_10: float | None
    ar_100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_class: dict[str, ClassMetrics]
    images: int
    ms_per_image: float | None = None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values with the keys of `dino eval --json` (which adds model, data, split)."""
        values = dataclasses.asdict(self)
        del values["warnings"]
        return {"images": values.pop("images"), **values}


def coco_metrics(
    records: Sequence[ImageRecord],
    predictions: Sequence[PredictedBoxes],
    classes: ClassMap,
    ms_per_image: float | None = None,
) -> Metrics:
    """Compare predictions with ground truth.

    Args:
        records: The images with their boxes.
        predictions: One entry per image, in the same order. At most the best 100 boxes per class
            and image count, as in COCO's evaluation.
        classes: Meaning of the class indices of both.
        ms_per_image: Copied into the result.
    """
    if len(records) != len(predictions):
        raise ValueError(f"{len(records)} images but {len(predictions)} predictions")
    # pycocotools prints its progress and table on stdout, which belongs to our own output.
    with contextlib.redirect_stdout(io.StringIO()):
        stats, precision = _run_cocoeval(records, predictions, classes)
    numbers = {name: _fraction(v) for name, v in zip(_STATS, stats.tolist(), strict=True)}
    return Metrics(
        **numbers,
        per_class=_per_class(records, classes, precision),
        images=len(records),
        ms_per_image=ms_per_image,
        warnings=(),
    )


def coco_predictions(
    records: Sequence[ImageRecord], predictions: Sequence[PredictedBoxes], classes: ClassMap
) -> list[dict[str, Any]]:
    """Return predictions as COCO results, with the data set's own ids and boxes x, y, w, h."""
    rows: list[dict[str, Any]] = []
    for record, predicted in zip(records, predictions, strict=True):
        boxes = _xywh(predicted.boxes_xyxy_px)
        for box, score, index in zip(boxes, predicted.scores, predicted.class_indices, strict=True):
            rows.append(
                {
                    "image_id": record.image_id,
                    "category_id": classes.source_ids[index],
                    "bbox": [round(float(v), 3) for v in box],
                    "score": round(float(score), 6),
                }
            )
    return rows


def _run_cocoeval(
    records: Sequence[ImageRecord], predictions: Sequence[PredictedBoxes], classes: ClassMap
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The library's stats (12,) and precision (10 IoUs, 101 recalls, C, 4 areas, 3 limits)."""
    from pycocotools.cocoeval import COCOeval

    truth = _coco_index(len(records), len(classes), _truth_rows(records))
    found = _coco_index(len(records), len(classes), _found_rows(predictions))
    evaluation = COCOeval(truth, found, iouType="bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return np.asarray(evaluation.stats), np.asarray(evaluation.eval["precision"])


def _coco_index(images: int, classes: int, rows: Iterator[dict[str, Any]]) -> Any:
    """Build an in-memory `COCO`; ids are positions, since a data set's own may not be unique."""
    from pycocotools.coco import COCO

    index = COCO()
    dataset: Any = {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": c, "name": str(c)} for c in range(classes)],
        "annotations": list(rows),
    }
    index.dataset = dataset
    index.createIndex()
    return index


def _truth_rows(records: Sequence[ImageRecord]) -> Iterator[dict[str, Any]]:
    next_id = 1  # COCOeval treats a match with annotation id 0 as no match
    for image, record in enumerate(records):
        boxes = _xywh(record.scored_xyxy_px).tolist()
        for row, box in enumerate(boxes):
            yield {
                "id": next_id,
                "image_id": image,
                "category_id": int(record.class_indices[row]),
                "bbox": box,
                "area": float(record.areas[row]),
                "iscrowd": int(record.is_crowd[row]),
            }
            next_id += 1


def _found_rows(predictions: Sequence[PredictedBoxes]) -> Iterator[dict[str, Any]]:
    next_id = 1
    for image, predicted in enumerate(predictions):
        boxes = _xywh(predicted.boxes_xyxy_px).tolist()
        scores = predicted.scores.tolist()
        indices = predicted.class_indices.tolist()
        for box, score, index in zip(boxes, scores, indices, strict=True):
            yield {
                "id": next_id,
                "image_id": image,
                "category_id": index,
                "bbox": box,
                "score": score,
                # COCO sorts detections into small, medium and large by the area of their boxes.
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            next_id += 1


def _per_class(
    records: Sequence[ImageRecord], classes: ClassMap, precision: NDArray[np.float64]
) -> dict[str, ClassMetrics]:
    """The numbers of each named class; crowd regions do not count as boxes."""
    images = np.zeros(len(classes), np.int64)
    boxes = np.zeros(len(classes), np.int64)
    for record in records:
        counts = record.boxes_by_class(len(classes))
        boxes += counts
        images += counts > 0
    result = {}
    for index, name in enumerate(classes.names):
        if name:
            # Axes: IoU, recall, class, area range, limit of detections. The first area range is
            # "all".
            table = precision[:, :, index, 0, -1]  # all areas, 100 detections: (10, 101)
            result[name] = ClassMetrics(
                _mean(table), _mean(table[0]), int(images[index]), int(boxes[index])
            )
    return result


def _mean(table: NDArray[np.float64]) -> float | None:
    """Mean of the entries that are defined; COCOeval marks the others with -1."""
    known = table[table > -1]
    return float(known.mean()) if known.size else None


def _fraction(value: float) -> float | None:
    return None if value < 0 else float(value)


def _xywh(boxes_xyxy_px: NDArray[np.float32]) -> NDArray[np.float64]:
    """Corner boxes as x, y, width, height, subtracted in float64."""
    # In float32 the difference of two large coordinates would change the last digits of an IoU.
    boxes = np.asarray(boxes_xyxy_px, np.float64).reshape(-1, 4).copy()
    boxes[:, 2:] -= boxes[:, :2]
    return boxes
