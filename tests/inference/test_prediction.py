"""The JSONL record, and drawing a prediction."""

from __future__ import annotations

from pathlib import Path

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
    with pytest.raises(DinoError, match="no picture to draw on"):
        failed("a.jpg", "a.jpg", "m", "gone").draw("x.jpg")


def test_draw_writes_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "out.png"
    prediction().draw(path)
    drawn = load_image(path)
    assert drawn.shape == (480, 640, 3) and drawn.any()
