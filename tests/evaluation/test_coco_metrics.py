"""AP against cases worked by hand, and against pycocotools run on its own from written files."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dino_core.data.formats.coco import read_coco
from dino_core.data.records import ImageRecord
from dino_core.detections import ClassMap
from dino_core.evaluation.coco_metrics import Metrics, coco_metrics, coco_predictions

STAT_NAMES = [
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
]


@dataclass(frozen=True)
class Found:
    boxes_xyxy_px: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_indices: NDArray[np.int64]


def truth(
    *objects: tuple[int, tuple[float, float, float, float]],
    crowd: tuple[bool, ...] | None = None,
    image_id: int = 1,
    areas: list[float] | None = None,
) -> ImageRecord:
    """An image with (class, corner box) objects."""
    boxes = np.array([box for _, box in objects], np.float32).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    return ImageRecord(
        image_id=image_id,
        path=Path(f"{image_id}.jpg"),
        width=640,
        height=480,
        boxes_xyxy_px=boxes,
        class_indices=np.array([c for c, _ in objects], np.int64),
        is_crowd=np.array(crowd or [False] * len(objects), bool),
        areas=np.array(areas, np.float32) if areas else sides.prod(axis=1),
    )


def found(*objects: tuple[int, float, tuple[float, float, float, float]]) -> Found:
    """Predictions as (class, score, corner box)."""
    return Found(
        np.array([box for *_, box in objects], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in objects], np.float32),
        np.array([c for c, *_ in objects], np.int64),
    )


ONE = ClassMap.from_names(["cat"], first_id=1)
TWO = ClassMap.from_names(["cat", "dog"], first_id=1)
BOX = (10.0, 10.0, 50.0, 60.0)
FAR = (300.0, 300.0, 340.0, 350.0)


def test_a_perfect_detection_scores_one() -> None:
    metrics = coco_metrics([truth((0, BOX))], [found((0, 0.9, BOX))], ONE)
    for name in ("ap", "ap50", "ap75", "ar_1", "ar_10", "ar_100"):
        assert getattr(metrics, name) == pytest.approx(1.0)
    assert metrics.ap_medium == pytest.approx(1.0)  # 40 x 50 = 2000 px: between 32**2 and 96**2
    assert metrics.ap_small is None
    assert metrics.ap_large is None


def test_iou_of_two_thirds_passes_four_of_ten_thresholds() -> None:
    # [0, 0, 90, 60] against [0, 0, 60, 60]: IoU 3600 / 5400 = 0.667 >= 0.50, 0.55, 0.60, 0.65.
    metrics = coco_metrics([truth((0, (0, 0, 60, 60)))], [found((0, 0.9, (0, 0, 90, 60)))], ONE)
    assert metrics.ap == pytest.approx(0.4)
    assert metrics.ap50 == pytest.approx(1.0)
    assert metrics.ap75 == pytest.approx(0.0)
    assert metrics.ar_1 == pytest.approx(0.4)


def test_a_better_scored_miss_halves_precision_at_every_recall() -> None:
    metrics = coco_metrics([truth((0, BOX))], [found((0, 0.9, FAR), (0, 0.5, BOX))], ONE)
    assert metrics.ap == pytest.approx(0.5)  # precision 1/2 at recall 1, interpolated to all
    assert metrics.ar_1 == pytest.approx(0.0)  # the best detection alone is the miss
    assert metrics.ar_10 == pytest.approx(1.0)


def test_one_of_two_objects_found_counts_51_of_101_recall_points() -> None:
    metrics = coco_metrics([truth((0, BOX), (0, FAR))], [found((0, 0.9, BOX))], ONE)
    assert metrics.ap50 == pytest.approx(51 / 101)  # recalls 0.00 ... 0.50
    assert metrics.ar_100 == pytest.approx(0.5)


def test_a_duplicate_is_a_false_positive_only_after_the_match() -> None:
    metrics = coco_metrics(
        [truth((0, BOX), (0, FAR))],
        [found((0, 0.9, BOX), (0, 0.8, BOX), (0, 0.7, FAR))],
        ONE,
    )
    # Recall 0.5 at precision 1, recall 1 at precision 2/3: 51 points of 1 and 50 of 2/3.
    assert metrics.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_detections_in_a_crowd_are_neither_right_nor_wrong() -> None:
    crowd = (200.0, 200.0, 400.0, 400.0)
    records = [truth((0, BOX), (0, crowd), crowd=(False, True))]
    inside = [(0, 0.99, FAR), (0, 0.98, (310.0, 310.0, 330.0, 330.0))]
    metrics = coco_metrics(records, [found(*inside, (0, 0.5, BOX))], ONE)
    assert metrics.ap == pytest.approx(1.0)
    assert metrics.per_class["cat"].boxes == 1


def test_area_ranges_use_the_data_sets_own_area() -> None:
    # A 40 x 50 box whose mask covers 500 px is a small object to COCO.
    metrics = coco_metrics([truth((0, BOX), areas=[500.0])], [found((0, 0.9, BOX))], ONE)
    assert metrics.ap_small == pytest.approx(1.0)
    assert metrics.ap_medium is None


def test_classes_are_averaged_and_reported_apart() -> None:
    records = [truth((0, BOX), (1, FAR)), truth((0, FAR), image_id=2)]
    predictions = [found((0, 0.9, BOX), (0, 0.3, FAR)), found((0, 0.8, FAR))]
    metrics = coco_metrics(records, predictions, TWO)
    assert metrics.ap == pytest.approx(0.5)
    cat, dog = metrics.per_class["cat"], metrics.per_class["dog"]
    assert (cat.ap, cat.ap50, cat.images, cat.boxes) == (pytest.approx(1.0), 1.0, 2, 2)
    assert (dog.ap, dog.ap50, dog.images, dog.boxes) == (pytest.approx(0.0), 0.0, 1, 1)


def test_a_class_without_ground_truth_is_unknown_and_left_out_of_the_mean() -> None:
    metrics = coco_metrics([truth((0, BOX))], [found((0, 0.9, BOX), (1, 0.9, FAR))], TWO)
    assert metrics.ap == pytest.approx(1.0)
    assert metrics.per_class["dog"].ap is None
    assert metrics.per_class["dog"].boxes == 0


def test_unnamed_slots_are_not_reported() -> None:
    classes = ClassMap(("", "cat"), (0, 1))
    metrics = coco_metrics([truth((1, BOX))], [found((1, 0.9, BOX))], classes)
    assert list(metrics.per_class) == ["cat"]


@pytest.mark.parametrize("detections", [found(), found((0, 0.9, BOX))])
def test_without_ground_truth_nothing_can_be_computed(detections: Found) -> None:
    metrics = coco_metrics([truth()], [detections], ONE)
    assert all(getattr(metrics, name) is None for name in STAT_NAMES)


def test_no_detections_score_zero() -> None:
    metrics = coco_metrics([truth((0, BOX))], [found()], ONE)
    assert metrics.ap == pytest.approx(0.0)
    assert metrics.ar_100 == pytest.approx(0.0)
    assert metrics.ap_small is None


def test_a_length_mismatch_is_refused() -> None:
    with pytest.raises(ValueError, match="1 images but 0 predictions"):
        coco_metrics([truth()], [], ONE)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    coco_metrics([truth((0, BOX))], [found((0, 0.9, BOX))], ONE)
    assert capsys.readouterr().out == ""


def test_to_dict_has_the_keys_of_the_json_contract() -> None:
    metrics = coco_metrics([truth((0, BOX))], [found((0, 0.9, BOX))], ONE, ms_per_image=12.5)
    values = metrics.to_dict()
    assert list(values) == ["images", *STAT_NAMES, "per_class", "ms_per_image"]
    assert values["images"] == 1
    assert values["ap_small"] is None
    assert values["per_class"]["cat"] == {
        "ap": pytest.approx(1.0),
        "ap50": pytest.approx(1.0),
        "images": 1,
        "boxes": 1,
    }
    assert json.loads(json.dumps(values))["ms_per_image"] == 12.5


def random_case(seed: int) -> tuple[list[ImageRecord], list[Found], ClassMap]:
    """40 images, 5 classes whose ids have gaps, crowds, odd areas, jittered and stray boxes."""
    rng = np.random.default_rng(seed)
    classes = ClassMap(("a", "b", "c", "d", "never"), (3, 17, 18, 44, 90))
    records, predictions = [], []
    for number in range(40):
        count = int(rng.integers(0, 9))
        corner = rng.uniform(0, 400, (count, 2))
        side = np.exp(rng.uniform(np.log(5), np.log(300), (count, 2)))
        boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
        labels = rng.integers(0, 4, count)
        records.append(
            ImageRecord(
                image_id=1000 + 37 * number,
                path=Path(f"{number}.jpg"),
                width=700,
                height=700,
                boxes_xyxy_px=boxes,
                class_indices=labels,
                is_crowd=rng.random(count) < 0.1,
                areas=(side.prod(axis=1) * rng.uniform(0.4, 1.0, count)).astype(np.float32),
            )
        )
        jitter = boxes + rng.normal(0, 0.12, boxes.shape) * np.tile(side, 2)
        strays = int(rng.integers(0, 130 if number < 3 else 6))
        stray = rng.uniform(0, 300, (strays, 2))
        stray = np.concatenate([stray, stray + rng.uniform(10, 200, (strays, 2))], axis=1)
        every = np.concatenate([jitter, stray]).astype(np.float32)
        every[:, 2:] = np.maximum(every[:, 2:], every[:, :2] + 1)
        guess = np.concatenate([labels, rng.integers(0, 5, strays)])
        scores = rng.choice(np.linspace(0.05, 0.95, 40), len(every)).astype(np.float32)  # ties
        predictions.append(Found(every, scores, guess))
    return records, predictions, classes


def evaluate_files(truth_file: Path, results_file: Path) -> Any:
    """pycocotools as its users run it: two JSON files, `loadRes`, the whole pipeline."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(truth_file))
        evaluation = COCOeval(gt, gt.loadRes(str(results_file)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def write_truth(path: Path, records: list[ImageRecord], classes: ClassMap) -> None:
    """COCO instances JSON in the data set's own ids, written here independently of the library."""
    annotations: list[dict[str, Any]] = []
    for record in records:
        for row, (x0, y0, x1, y1) in enumerate(record.boxes_xyxy_px.astype(float).tolist()):
            annotations.append(
                {
                    "id": 500 + 3 * len(annotations),
                    "image_id": record.image_id,
                    "category_id": classes.source_ids[record.class_indices[row]],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": float(record.areas[row]),
                    "iscrowd": int(record.is_crowd[row]),
                }
            )
    images = [{"id": r.image_id, "file_name": r.path.name} for r in records]
    categories = [
        {"id": i, "name": n} for n, i in zip(classes.names, classes.source_ids, strict=True)
    ]
    document = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_to_pycocotools_run_from_files(tmp_path: Path, seed: int) -> None:
    records, predictions, classes = random_case(seed)
    write_truth(tmp_path / "truth.json", records, classes)
    rows = [
        {
            "image_id": record.image_id,
            "category_id": classes.source_ids[index],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
        }
        for record, predicted in zip(records, predictions, strict=True)
        for (x0, y0, x1, y1), score, index in zip(
            predicted.boxes_xyxy_px.astype(float).tolist(),
            predicted.scores.astype(float).tolist(),
            predicted.class_indices.tolist(),
            strict=True,
        )
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows), encoding="utf-8")
    expected = evaluate_files(tmp_path / "truth.json", tmp_path / "results.json")

    metrics = coco_metrics(records, predictions, classes)

    assert_equal_stats(metrics, expected)


def assert_equal_stats(metrics: Metrics, expected: Any, tolerance: float = 1e-6) -> None:
    """All 12 numbers and each class's AP, from a `COCOeval` that has been summarised."""
    for name, value in zip(STAT_NAMES, expected.stats, strict=True):
        assert getattr(metrics, name) == pytest.approx(value, abs=tolerance), name
    for index, (name, numbers) in enumerate(metrics.per_class.items()):
        precision = expected.eval["precision"][:, :, index, 0, 2]
        if (precision == -1).all():
            assert numbers.ap is None
            assert numbers.ap50 is None
        else:
            assert numbers.ap == pytest.approx(precision.mean(), abs=tolerance), name
            assert numbers.ap50 == pytest.approx(precision[0].mean(), abs=tolerance), name


def test_written_predictions_score_the_same_in_pycocotools(tmp_path: Path) -> None:
    records, predictions, classes = random_case(7)
    write_truth(tmp_path / "truth.json", records, classes)
    rows = coco_predictions(records, predictions, classes)
    (tmp_path / "predictions.json").write_text(json.dumps(rows), encoding="utf-8")
    expected = evaluate_files(tmp_path / "truth.json", tmp_path / "predictions.json")

    metrics = coco_metrics(records, predictions, classes)

    # Boxes are written to 0.001 px and scores to 1e-6, below the spacing of this case.
    assert_equal_stats(metrics, expected, tolerance=1e-4)


GENERAL = Path(__file__).parents[2] / "../shared/data/general"


@pytest.mark.skipif(not GENERAL.is_dir(), reason="needs the shared data set")
def test_equal_to_pycocotools_on_a_real_data_set(tmp_path: Path) -> None:
    """The annotation file through our reader, against pycocotools on the same file."""
    dataset = read_coco(GENERAL)
    records, classes = dataset.splits["val"][:150], dataset.classes
    rng = np.random.default_rng(5)
    predictions, rows = [], []
    for record in records:
        boxes = record.boxes_xyxy_px.astype(float)
        side = np.maximum(boxes[:, 2:] - boxes[:, :2], 4.0)
        boxes = boxes + rng.normal(0, 0.1, boxes.shape) * np.tile(side, 2)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 2)
        scores = rng.random(len(boxes)).astype(np.float32)
        wrong = rng.integers(0, len(classes), len(boxes))
        labels = np.where(rng.random(len(boxes)) < 0.2, wrong, record.class_indices)
        boxes_px = boxes.astype(np.float32)
        predictions.append(Found(boxes_px, scores, labels))
        for (x0, y0, x1, y1), score, label in zip(
            boxes_px.astype(float).tolist(), scores.tolist(), labels.tolist(), strict=True
        ):
            category, box = classes.source_ids[label], [x0, y0, x1 - x0, y1 - y0]
            rows.append(
                {
                    "image_id": record.image_id,
                    "category_id": category,
                    "bbox": box,
                    "score": score,
                }
            )
    (tmp_path / "results.json").write_text(json.dumps(rows), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(GENERAL / "annotations" / "instances_val.json"))
        evaluation = COCOeval(gt, gt.loadRes(str(tmp_path / "results.json")), "bbox")
        evaluation.params.imgIds = [record.image_id for record in records]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    assert_equal_stats(coco_metrics(records, predictions, classes), evaluation)
