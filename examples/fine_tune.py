"""Fine-tune the built-in model on a few generated images, then evaluate and predict with it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dino_core import Detector, evaluate, fit
from dino_core.engine.events import EvaluationDone, StepDone


def make_data(root: Path, count: int) -> None:
    """Write a COCO data set of gray images with one red ball each."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        images, annotations = [], []
        for i in range(1, count + 1):
            picture = Image.new("RGB", (128, 96), (128, 128, 128))
            x, y, side = (
                int(v) for v in (rng.integers(80), rng.integers(50), rng.integers(25, 45))
            )
            ImageDraw.Draw(picture).ellipse((x, y, x + side, y + side), fill=(200, 30, 30))
            picture.save(root / "images" / split / f"{i}.jpg")
            images.append({"id": i, "file_name": f"{i}.jpg", "width": 128, "height": 96})
            annotations.append(
                {"id": i, "image_id": i, "category_id": 1, "bbox": [x, y, side, side],
                 "area": side * side, "iscrowd": 0}
            )  # fmt: skip
        (root / "annotations").mkdir(exist_ok=True)
        categories = [{"id": 1, "name": "ball"}]
        (root / "annotations" / f"instances_{split}.json").write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )


with tempfile.TemporaryDirectory() as folder:
    data, run = Path(folder, "balls"), Path(folder, "run")
    make_data(data, count=8)
    for event in fit(data, model="dino-nano", steps=12, batch=4, image_size=128, out=run):
        if isinstance(event, StepDone):
            print(f"step {event.step}: loss {event.losses['total']:.2f}")
        elif isinstance(event, EvaluationDone):
            print(f"step {event.step}: AP50 {event.metrics.ap50:.2f}")
    print(f"the best weights again: AP50 {evaluate(run / 'best.safetensors', data).ap50:.2f}")
    detector = Detector.load(run / "best.safetensors")
    result = next(iter(detector.predict(data / "images/val/1.jpg", threshold=0.0)))
    print(f"best guess: {result.labels[0]} {result.scores[0]:.2f}")
