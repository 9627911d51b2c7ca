"""Find objects from Python, with three kinds of input: a path, a Pillow image and an array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dino_core import Detector

PHOTOS = Path(__file__).parent / "photos"

detector = Detector.load("dino-nano", device="cpu")
picture = Image.open(PHOTOS / "astronaut.jpg")
for result in detector.predict([PHOTOS / "cat.jpg", picture, np.asarray(picture)], threshold=0.3):
    print(f"{result.width} x {result.height}:")
    for label, score, box in zip(result.labels, result.scores, result.boxes_xyxy_px, strict=True):
        print(f"  {label} {score:.2f} at {np.round(box).astype(int).tolist()}")
