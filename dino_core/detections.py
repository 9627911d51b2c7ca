"""What a detector answers (`Detections`) and what its class indices mean (`ClassMap`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_core.config import nearest
from dino_core.errors import ConfigError, DataError


@dataclass(frozen=True)
class ClassMap:
    """Contiguous class index <-> name <-> the data set's own category id.

    An empty name marks a slot that no category uses (the official 91-slot COCO heads have 11).
    """

    names: tuple[str, ...]
    source_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.source_ids):
            raise DataError(f"{len(self.names)} class names but {len(self.source_ids)} class ids")
        if len(set(self.source_ids)) != len(self.source_ids):
            raise DataError("class ids are not unique")
        used = [n for n in self.names if n]
        if len(set(used)) != len(used):
            twice = sorted({n for n in used if used.count(n) > 1})
            raise DataError(f"class names are not unique: {', '.join(twice)}")

    @classmethod
    def from_names(cls, names: Iterable[str], first_id: int = 0) -> ClassMap:
        """Classes whose ids count up from `first_id` in the order given."""
        names = tuple(names)
        return cls(names, tuple(range(first_id, first_id + len(names))))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def index_of_id(self) -> dict[int, int]:
        return {source_id: index for index, source_id in enumerate(self.source_ids)}

    def indices_of(self, names: Sequence[str]) -> list[int]:
        """Indices of the named classes. Raises ConfigError with the nearest known name."""
        index = {name: i for i, name in enumerate(self.names) if name}
        for name in names:
            if name not in index:
                known = nearest(name, index) or f"known: {', '.join(index)}"
                raise ConfigError(f"the model has no class '{name}'", known)
        return [index[name] for name in names]

    def to_dict(self) -> dict[str, Any]:
        return {"names": list(self.names), "source_ids": list(self.source_ids)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ClassMap:
        return cls(tuple(map(str, data["names"])), tuple(map(int, data["source_ids"])))


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, best score first.

    Attributes:
        boxes_xyxy_px: (N, 4) float32, pixels of the original upright image.
        scores: (N,) float32 in [0, 1].
        class_ids: (N,) int64, the data set's own category ids.
        labels: N class names.
        width: Image width in pixels.
        height: Image height in pixels.
    """

    boxes_xyxy_px: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    labels: list[str]
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.labels)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: width, height and a `detections` list as in the JSONL contract."""
        rows = zip(self.labels, self.class_ids, self.scores, self.boxes_xyxy_px, strict=True)
        return {
            "width": self.width,
            "height": self.height,
            "detections": [
                {
                    "label": label,
                    "class_id": int(class_id),
                    "score": round(float(score), 4),
                    "box": [round(float(v), 2) for v in box],
                }
                for label, class_id, score, box in rows
            ],
        }
