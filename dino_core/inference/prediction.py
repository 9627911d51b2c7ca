"""What the detector answers for one picture: its detections and where the picture came from."""

from __future__ import annotations

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
    """Detections of one picture, video frame, or unreadable file.

    Attributes:
        source: Path, URL or device as given; empty for an array.
        name: Relative path to name outputs after.
        model: Name of the model.
        image: (H, W, 3) RGB uint8, the upright original; None where there is an error.
        frame: Frame number in a video, from 0; None for a still picture.
        time_s: Time of that frame in seconds.
        fps: Frame rate of the video.
        ms: Milliseconds of "preprocess", "model" and "postprocess".
        error: Why the picture could not be read; there are no detections then.
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

    def to_dict(self) -> dict[str, Any]:
        """The JSONL record: plain values, boxes in pixels of the upright original."""
        found = super().to_dict()
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "source": self.source,
            "frame": self.frame,
            "time_s": None if self.time_s is None else round(self.time_s, 4),
            "width": found["width"],
            "height": found["height"],
            "model": self.model,
            "detections": found["detections"],
            "ms": {name: round(value, 2) for name, value in self.ms.items()},
        }
        if self.error is not None:
            record |= {"width": None, "height": None, "error": self.error}
        return record

    def drawn(self) -> UInt8Image:
        """The picture with boxes and labels; a very small one is enlarged so they can be read.

        Raises:
            DinoError: the picture could not be read.
        """
        if self.image is None:
            raise DinoError(f"{self.source}: there is no picture to draw on", self.error or "")
        return draw_detections(self.image, self)

    def draw(self, path: str | Path) -> None:
        """Save the picture with boxes and labels; the suffix decides the format.

        Raises:
            DinoError: there is no picture, or it cannot be written.
        """
        path = Path(path)
        data = encode_image(self.drawn(), path.suffix)
        with atomic_file(path) as file:
            file.write(data)


def failed(source: str, name: str, model: str, error: str) -> Prediction:
    """The prediction that stands for a picture that could not be read."""
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
