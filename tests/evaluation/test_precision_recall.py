"""Curves and thresholds against cases worked by hand and pycocotools' own precision table."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scored_boxes import found, random_case, truth

from dino_core.detections import ClassMap
from dino_core.evaluation.precision_recall import best_f1, precision_recall

ONE, TWO = ClassMap.from_names(["cat"]), ClassMap.from_names(["cat", "dog"])
BOX, FAR = (10.0, 10.0, 50.0, 60.0), (300.0, 300.0, 340.0, 350.0)


def pycocotools_precision(
    records: list[Any], predictions: list[Any], classes: int
) -> NDArray[np.float64]:
    """(101, C): precision at IoU 0.5 of all areas and at most 100 detections."""

    def index(rows: list[dict[str, Any]]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(len(records))],
            "categories": [{"id": c} for c in range(classes)],
            "annotations": [{"id": n, **row} for n, row in enumerate(rows, start=1)],
        }
        coco.createIndex()
        return coco

    def row(image: int, label: int, box: list[float]) -> dict[str, Any]:
        x, y, width, height = box[0], box[1], box[2] - box[0], box[3] - box[1]
        return {
            "image_id": image, "category_id": label, "bbox": [x, y, width, height],
            "area": width * height, "iscrowd": 0,
        }  # fmt: skip

    truths = [
        {**row(i, int(c), b.tolist()), "iscrowd": int(crowd)}
        for i, r in enumerate(records)
        for c, b, crowd in zip(
            r.class_indices, r.boxes_xyxy_px.astype(float), r.is_crowd, strict=True
        )
    ]
    detected = [
        {**row(i, int(c), b.tolist()), "score": float(s)}
        for i, p in enumerate(predictions)
        for c, b, s in zip(p.class_indices, p.boxes_xyxy_px.astype(float), p.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(index(truths), index(detected), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    table: NDArray[np.float64] = evaluation.eval["precision"][0, :, :, 0, 2]
    return table


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_curves_are_those_of_pycocotools(seed: int) -> None:
    records, predictions = random_case(seed)
    expected = pycocotools_precision(records, predictions, 4)
    result = precision_recall(records, predictions, ClassMap.from_names("abcd"))
    assert (expected[:, 3] == -1).all()
    assert [curve.name for curve in result.curves] == ["a", "b", "c"]
    for index, curve in enumerate(result.curves):
        # Both divide the same counts in float64; pycocotools adds 2e-16 below the line.
        np.testing.assert_allclose(curve.precision, expected[:, index], atol=1e-9)
    assert 0.05 < result.mean.mean() < 0.95  # the case is neither all right nor all wrong


def test_a_duplicate_after_the_match_by_hand() -> None:
    records = [truth((0, BOX), (0, FAR))]
    predictions = [found((0, 0.9, BOX), (0, 0.8, BOX), (0, 0.7, FAR))]
    (curve,) = precision_recall(records, predictions, ONE).curves
    # Recall 0.5 at precision 1, recall 1 at precision 2/3.
    assert curve.precision.tolist() == pytest.approx([1.0] * 51 + [2 / 3] * 50)
    assert curve.ap == pytest.approx((51 + 50 * 2 / 3) / 101)
    # F1 is 2/3 after one detection, 1/2 after two and 4/5 after three.
    assert curve.best.threshold == pytest.approx(0.7)
    assert curve.best.f1 == pytest.approx(0.8)


def test_an_object_is_taken_by_the_nearest_detection_of_the_best_score_only() -> None:
    shifted = (14.0, 10.0, 54.0, 60.0)  # IoU 36/44 with BOX
    records = [truth((0, BOX), (0, shifted))]
    (curve,) = precision_recall(records, [found((0, 0.9, shifted), (0, 0.8, BOX))], ONE).curves
    assert curve.ap == pytest.approx(1.0)


def test_detections_in_crowds_do_not_count() -> None:
    crowd = (200.0, 200.0, 400.0, 400.0)
    records = [truth((0, BOX), (0, crowd), crowd=(False, True))]
    result = precision_recall(records, [found((0, 0.99, FAR), (0, 0.5, BOX))], ONE)
    assert result.curves[0].boxes == 1
    assert result.curves[0].ap == pytest.approx(1.0)
    assert result.best.f1 == pytest.approx(1.0)


def test_classes_without_objects_have_no_curve_but_spoil_the_common_threshold() -> None:
    records = [truth((0, BOX))]
    predictions = [found((1, 0.9, FAR), (0, 0.5, BOX))]
    result = precision_recall(records, predictions, TWO)
    assert [curve.name for curve in result.curves] == ["cat"]
    assert result.best.f1 == pytest.approx(2 / 3)  # 1 right of 2, 1 object


def test_nothing_found_and_nothing_to_find() -> None:
    result = precision_recall([truth((0, BOX))], [found()], ONE)
    assert result.curves[0].ap == 0.0
    assert result.best.threshold is None
    empty = precision_recall([truth()], [found((0, 0.9, BOX))], ONE)
    assert empty.curves == () and empty.mean.shape == (101,) and not empty.mean.any()
    assert precision_recall([], [], ONE).best.threshold is None


def test_a_threshold_does_not_part_equal_scores() -> None:
    # At 0.8 all three count: F1 = 2*1/(3+1); no threshold keeps only the first of them.
    best = best_f1(np.array([0.8, 0.8, 0.8]), np.array([True, False, False]), 1)
    assert (best.threshold, best.f1) == (0.8, pytest.approx(0.5))
