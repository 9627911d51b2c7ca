"""Boxes that reach outside are scored as pycocotools scores the file, and names by their case."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import image_file, text_file

from dino_core.data.load import read_dataset
from dino_core.detections import ClassMap
from dino_core.errors import DataError
from dino_core.evaluation.coco_metrics import coco_metrics, coco_predictions
from dino_core.evaluation.evaluate import match_classes
from dino_core.processing.postprocess import Decoded


def test_boxes_that_reach_outside_score_as_in_pycocotools(tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    image_file(tmp_path / "a.jpg", (200, 120))
    boxes = [[-30, 20, 80, 60], [150, 70, 90, 90], [60, 30, 40, 40]]
    table = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 120}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3],
             "iscrowd": 0}
            for i, box in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }  # fmt: skip
    file = text_file(tmp_path / "val.json", json.dumps(table))
    index = read_dataset(tmp_path)
    records = index.splits["val"]
    corners = np.array([[0, 20, 50, 80], [150, 70, 200, 120], [60, 30, 98, 70]], np.float32)
    decoded = Decoded(corners, np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int64))
    metrics = coco_metrics(records, [decoded], index.classes)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        found = truth.loadRes(coco_predictions(records, [decoded], index.classes))
        expected = COCOeval(truth, found, "bbox")
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
    assert [metrics.ap, metrics.ap50, metrics.ar_100] == pytest.approx(
        [expected.stats[0], expected.stats[1], expected.stats[8]]
    )
    assert 0.1 < expected.stats[0] < 0.9
    assert records[0].boxes_xyxy_px.min() == 0  # training sees the clipped boxes


def test_classes_that_differ_in_capitals_are_named() -> None:
    model = ClassMap.from_names(["person", "cat", "dog"])
    with pytest.raises(DataError, match="no class name in common") as error:
        match_classes(model, ClassMap.from_names(["Person", "Cat"]))
    expected = "write the data's classes as the model does: person instead of Person, cat instead"
    assert error.value.hint == f"{expected} of Cat"
    _, (warning,) = match_classes(model, ClassMap.from_names(["person", "Cat"]))
    assert warning.endswith("some differ in capitals only: cat instead of Cat")
    with pytest.raises(DataError) as error:
        match_classes(model, ClassMap.from_names(["bus"]))
    assert error.value.hint == "train a model on this data, or rename its classes"
