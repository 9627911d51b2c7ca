"""What the detector returns for one image: its detections and where the image came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dino_core.detections import Detections
from dino_core.errors import DinoError
from dino_core.files import atomic_file
from dino_core.inference.draw import draw_detections, encode_image
from dino_core.processing.preprocess import UInt8Image

SCHEMA = 1


@dataclass(frozen=True)
class Prediction(Detections):
    """Detections of one image or video frame, or the reason why it could not be read.

    Attributes:
        source: Path, URL or device as given; empty for an array.
        name: Relative path that files about this prediction are named after.
        model: Name of the model.
        image: (H, W, 3) RGB uint8, the upright original; None where it could not be read, or where
            the prediction was read from a file.
        frame: Frame number in a video, from 0; None for a still image.
        time_s: Time of that frame in seconds.
        fps: Frame rate of the video.
        ms: Milliseconds of "preprocess", "model" and "postprocess".
        error: Why the image could not be read; there are no detections then.
    """

    source: str = ""
    name: str = ""
    model: str = ""
    image: UInt8Image | None = field(default=None, repr=False, compare=False)
    frame: int | None = None
    time_s: float | None = None
    fps: float | None = None
    ms: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def rounded_time_s(self) -> float | None:
        """`time_s` to a tenth of a millisecond, as every kind of output states it."""
        return None if self.time_s is None else round(self.time_s, 4)

    def to_dict(self) -> dict[str, Any]:
        """The JSONL record: plain values, boxes in pixels of the upright original."""
        found = super().to_dict()
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "source": self.source,
            "frame": self.frame,
            "time_s": self.rounded_time_s,
            "width": found["width"],
            "height": found["height"],
            "model": self.model,
            "detections": found["detections"],
            "ms": {name: round(value, 2) for name, value in self.ms.items()},
        }
        if self.error is not None:
            record |= {"width": None, "height": None, "error": self.error}
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Prediction:
        """Read a record that `to_dict` returned; the pixels are not part of it.

        `to_dict` of the result is the same record again: rounding moves a float32 number by less
        than half the distance to its neighbors, or the distance is smaller than the last decimal.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: the record is malformed.
        """
        if record["schema"] != SCHEMA:
            raise ValueError(f"its schema is {record['schema']!r}, expected {SCHEMA}")
        found = record["detections"]
        boxes = np.array([row["box"] for row in found], np.float32).reshape(len(found), 4)
        return cls(
            boxes_xyxy_px=boxes,
            scores=np.array([row["score"] for row in found], np.float32),
            class_ids=np.array([row["class_id"] for row in found], np.int64),
            labels=[str(row["label"]) for row in found],
            width=int(record["width"] or 0),
            height=int(record["height"] or 0),
            source=str(record["source"]),
            name=Path(str(record["source"])).name,
            model=str(record["model"]),
            frame=record["frame"],
            time_s=record["time_s"],
            ms={str(name): float(value) for name, value in record["ms"].items()},
            error=record.get("error"),
        )

    def drawn(self) -> UInt8Image:
        """The image with boxes and labels.

        A very small image is enlarged so that they are readable, but a frame of a video is not.

        Raises:
            DinoError: there are no pixels to draw on.
        """
        if self.image is None:
            raise DinoError(f"{self.source}: there is no image to draw on", self.error or "")
        return draw_detections(self.image, self, enlarge=self.frame is None)

    def draw(self, path: str | Path) -> None:
        """Save the image with boxes and labels; the suffix decides the format.

        Raises:
            DinoError: there are no pixels to draw on, or the file cannot be written.
        """
        path = Path(path)
        data = encode_image(self.drawn(), path.suffix)
        with atomic_file(path) as file:
            file.write(data)


def failed(source: str, name: str, model: str, error: str) -> Prediction:
    """The prediction that stands for an image that could not be read."""
    return Prediction(
        boxes_xyxy_px=np.zeros((0, 4), np.float32),
        scores=np.zeros(0, np.float32),
        class_ids=np.zeros(0, np.int64),
        labels=[],
        width=0,
        height=0,
        source=source,
        name=name,
        model=model,
        error=error,
    )
