"""One table of all detections as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dino_core.inference.outputs.writer import StreamedFile

if TYPE_CHECKING:
    from dino_core.detections import ClassMap
    from dino_core.inference.prediction import Prediction

COLUMNS = (
    "source", "frame", "time_s", "width", "height", "label", "class_id", "score",
    "x1", "y1", "x2", "y2",
)  # fmt: skip


class CsvWriter(StreamedFile):
    """`predictions.csv`: one row per detection, boxes in pixels of the upright image."""

    def __init__(self, out: Path, classes: ClassMap) -> None:
        super().__init__(out / "predictions.csv")
        self.write_header(_rows([COLUMNS]))

    def add(self, prediction: Prediction, stem: str) -> None:
        p = prediction
        image = (p.source, p.frame, p.rounded_time_s, p.width, p.height)
        rows = _rows(
            (*image, found.label, found.class_id, found.score, *found.box_xyxy_px)
            for found in p.rounded()
        )
        if rows:
            self.write(rows)


def _rows(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
