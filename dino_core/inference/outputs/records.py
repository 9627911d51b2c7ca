"""The records of INTERFACE.md, one per image or video frame: as JSON Lines and as one JSON list."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dino_core.files import json_text
from dino_core.inference.outputs.writer import StreamedFile

if TYPE_CHECKING:
    from dino_core.detections import ClassMap
    from dino_core.inference.prediction import Prediction

JSONL_NAME = "predictions.jsonl"


def to_json_line(prediction: Prediction) -> str:
    """The record of one prediction as a line of JSON, without the line break."""
    return json_text(prediction.to_dict())


class JsonLinesWriter(StreamedFile):
    """`predictions.jsonl`: one record per line, unreadable images included."""

    def __init__(self, out: Path, classes: ClassMap) -> None:
        super().__init__(out / JSONL_NAME)

    def add(self, prediction: Prediction, stem: str) -> None:
        self.write(to_json_line(prediction) + "\n")


class JsonWriter(StreamedFile):
    """`predictions.json`: a list of the same records."""

    ending = "\n]\n"

    def __init__(self, out: Path, classes: ClassMap) -> None:
        super().__init__(out / "predictions.json")
        self._separator = "[\n"

    def add(self, prediction: Prediction, stem: str) -> None:
        self.write(self._separator + to_json_line(prediction))
        self._separator = ",\n"

    def finish(self) -> None:
        self.write(self.ending if self._separator == ",\n" else "[]\n")
        super().finish()
