"""Each detection cut out of its image, in a folder per class."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from dino_core.files import atomic_file
from dino_core.inference.names import frame_stem, safe_name

if TYPE_CHECKING:
    from dino_core.detections import ClassMap
    from dino_core.inference.prediction import Prediction


class CropWriter:
    """`crops/CLASS/NAME_N.jpg`: the N-th detection of an image, the best one being number 0."""

    def __init__(self, out: Path, classes: ClassMap) -> None:
        self._folder = out / "crops"

    def add(self, prediction: Prediction, stem: str) -> None:
        from dino_core.inference.draw import encode_jpeg_or_png

        image = prediction.image
        if image is None:
            return
        height, width = image.shape[:2]
        base = frame_stem(stem, prediction.frame).replace("/", "_")
        rows = zip(prediction.labels, prediction.boxes_xyxy_px, strict=True)
        for number, (label, box) in enumerate(rows):
            # Every pixel that the box touches, and at least one: a box at the right or bottom
            # border may be narrower than a pixel.
            left = min(math.floor(box[0]), width - 1)
            top = min(math.floor(box[1]), height - 1)
            right, bottom = max(math.ceil(box[2]), left + 1), max(math.ceil(box[3]), top + 1)
            suffix, data = encode_jpeg_or_png(image[top:bottom, left:right])
            folder = self._folder / safe_name(label.replace("/", "_"))
            with atomic_file(folder / f"{base}_{number}{suffix}") as file:
                file.write(data)

    def finish(self) -> None:
        """Each file is complete by itself."""

    def abort(self, *, keep: bool = False) -> None:
        """Each file is complete by itself."""
