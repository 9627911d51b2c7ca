"""One COCO data set of all images, whose annotations carry a score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_core.files import atomic_file, json_text
from dino_core.inference.names import frame_stem

if TYPE_CHECKING:
    from dino_core.detections import ClassMap
    from dino_core.inference.prediction import Prediction


class CocoWriter:
    """`predictions.coco.json`: a data set as COCO publishes it, with a `score` per annotation.

    Image ids count from 1 in input order; unreadable images are left out. Category ids are those
    of the data set that the model was trained on.
    """

    def __init__(self, out: Path, classes: ClassMap) -> None:
        self._path = out / "predictions.coco.json"
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        pairs = zip(classes.source_ids, classes.names, strict=True)
        self._categories = [{"id": i, "name": name} for i, name in pairs if name]

    def add(self, prediction: Prediction, stem: str) -> None:
        if prediction.error is not None:
            return
        image_id = len(self._images) + 1
        image: dict[str, Any] = {"id": image_id, "file_name": prediction.source or stem}
        if prediction.frame is not None:
            image["file_name"] = frame_stem(stem, prediction.frame)
            image["video"] = prediction.source
        self._images.append(image | {"width": prediction.width, "height": prediction.height})
        for found in prediction.rounded():
            x1, y1, x2, y2 = found.box_xyxy_px
            width, height = round(x2 - x1, 2), round(y2 - y1, 2)
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image_id,
                    "category_id": found.class_id,
                    "bbox": [x1, y1, width, height],
                    "area": round(width * height, 2),
                    "iscrowd": 0,
                    "score": found.score,
                }
            )

    def finish(self) -> None:
        data = {
            "images": self._images,
            "annotations": self._annotations,
            "categories": self._categories,
        }
        with atomic_file(self._path) as file:
            file.write(json_text(data).encode())

    def abort(self, *, keep: bool = False) -> None:
        """Nothing is on the disk before `finish`."""
