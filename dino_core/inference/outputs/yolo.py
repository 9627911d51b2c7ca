"""A YOLO data set: one label file per image or video frame, and data.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dino_core.files import atomic_file
from dino_core.inference.names import frame_stem

if TYPE_CHECKING:
    from dino_core.detections import ClassMap, Detection
    from dino_core.inference.prediction import Prediction


class YoloWriter:
    """`yolo/labels/NAME.txt` and `yolo/data.yaml`.

    A line is `class cx cy w h`, fractions of the image's width and height, without a score, as in
    data sets for training. Classes are numbered from 0 in the model's order.
    """

    def __init__(self, out: Path, classes: ClassMap) -> None:
        self._folder = out / "yolo"
        self._names = [name for name in classes.names if name]

    def add(self, prediction: Prediction, stem: str) -> None:
        if prediction.error is not None:
            return
        size = (prediction.width, prediction.height)
        lines = [self._line(found, size) for found in prediction.rounded()]
        path = self._folder / "labels" / f"{frame_stem(stem, prediction.frame)}.txt"
        with atomic_file(path) as file:
            file.write("".join(lines).encode())

    def _line(self, found: Detection, size: tuple[int, int]) -> str:
        x1, y1, x2, y2 = found.box_xyxy_px
        width, height = size
        center = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height)
        numbers = (*center, (x2 - x1) / width, (y2 - y1) / height)
        index = self._names.index(found.label)
        return f"{index} {' '.join(f'{v:.6f}' for v in numbers)}\n"

    def finish(self) -> None:
        # A JSON string is also a YAML string, whatever characters the name has.
        names = "".join(
            f"  {i}: {json.dumps(name, ensure_ascii=False)}\n" for i, name in enumerate(self._names)
        )
        with atomic_file(self._folder / "data.yaml") as file:
            file.write(f"path: .\ntrain: images\nval: images\nnames:\n{names}".encode())

    def abort(self, *, keep: bool = False) -> None:
        """Each file is complete by itself."""
