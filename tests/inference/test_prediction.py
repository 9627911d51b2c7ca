"""The JSONL record, and drawing a prediction."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dino_core.errors import DinoError
from dino_core.inference.prediction import Prediction, failed
from dino_core.processing.preprocess import load_image


def prediction() -> Prediction:
    return Prediction(
        boxes_xyxy_px=np.array([[1.234, 2, 30.5, 40]], np.float32),
        scores=np.array([0.912345], np.float32),
        class_ids=np.array([18]),
        labels=["dog"],
        width=640,
        height=480,
        source="photos/a.jpg",
        name="a.jpg",
        model="dino-nano",
        image=np.zeros((480, 640, 3), np.uint8),
        ms={"preprocess": 1.888, "model": 61.0, "postprocess": 0.4},
    )


def test_the_record_of_the_contract() -> None:
    assert prediction().to_dict() == {
        "schema": 1,
        "source": "photos/a.jpg",
        "frame": None,
        "time_s": None,
        "width": 640,
        "height": 480,
        "model": "dino-nano",
        "detections": [
            {"label": "dog", "class_id": 18, "score": 0.9123, "box": [1.23, 2.0, 30.5, 40.0]}
        ],
        "ms": {"preprocess": 1.89, "model": 61.0, "postprocess": 0.4},
    }
    order = "schema source frame time_s width height model detections ms"
    assert " ".join(prediction().to_dict()) == order


def test_a_file_that_cannot_be_read() -> None:
    record = failed("a.jpg", "a.jpg", "m", "a.jpg: no such file").to_dict()
    assert record["error"] == "a.jpg: no such file"
    assert record["detections"] == [] and record["width"] is None
    with pytest.raises(DinoError, match="no image to draw on"):
        failed("a.jpg", "a.jpg", "m", "gone").draw("x.jpg")


def test_draw_writes_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "out.png"
    prediction().draw(path)
    drawn = load_image(path)
    assert drawn.shape == (480, 640, 3) and drawn.any()


def test_a_record_is_read_back_and_gives_the_same_record() -> None:
    rng = np.random.default_rng(0)
    # Boxes up to the longest sides that Pillow opens, where float32 has one decimal left or none.
    boxes = rng.random((2000, 4), np.float32) * np.float32(10) ** rng.integers(0, 8, (2000, 1))
    one = replace(
        prediction(),
        boxes_xyxy_px=boxes.astype(np.float32),
        scores=rng.random(2000, np.float32),
        class_ids=rng.integers(0, 91, 2000),
        labels=["größe/x"] * 2000,
        frame=7,
        time_s=0.28004,
    )
    for written in (one, replace(one, **NONE), failed("a.jpg", "a.jpg", "m", "no such file")):
        record = json.loads(json.dumps(written.to_dict()))
        read = Prediction.from_dict(record)
        assert read.to_dict() == record and list(read.to_dict()) == list(record)
        assert read.image is None and read.error == written.error


NONE: dict[str, Any] = {
    "boxes_xyxy_px": np.zeros((0, 4), np.float32),
    "scores": np.zeros(0, np.float32),
    "class_ids": np.zeros(0, np.int64),
    "labels": [],
}


def test_a_malformed_record_is_not_read() -> None:
    record = prediction().to_dict()
    for change in ({"detections": [{"label": "dog"}]}, {"width": "wide"}, {"ms": None}):
        with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
            Prediction.from_dict(record | change)
