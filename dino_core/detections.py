"""What a detector returns (`Detections`) and what its class indices mean (`ClassMap`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_core.errors import ConfigError, DataError
from dino_core.limits import readable
from dino_core.suggestions import nearest_or_all


@dataclass(frozen=True)
class ClassMap:
    """Contiguous class index <-> name <-> the data set's own category id.

    An empty name marks an index that no category uses (11 of the 91 in the official COCO models).

    Attributes:
        names: Class name per index.
        source_ids: Category id per index.
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
            raise DataError(f"class names are not unique: {', '.join(map(readable, twice))}")

    @classmethod
    def from_names(cls, names: Iterable[str], first_id: int = 0) -> ClassMap:
        """Classes whose ids count up from `first_id` in the order given."""
        names = tuple(names)
        return cls(names, tuple(range(first_id, first_id + len(names))))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def index_of_id(self) -> dict[int, int]:
        """Class index by category id."""
        return {source_id: index for index, source_id in enumerate(self.source_ids)}

    def indices_of(self, names: Sequence[str]) -> list[int]:
        """Indices of the named classes. Raises ConfigError with the nearest known name."""
        index = {name: i for i, name in enumerate(self.names) if name}
        for name in names:
            if name not in index:
                hint = nearest_or_all(name, index)
                raise ConfigError(f"the model has no class '{name}'", hint)
        return [index[name] for name in names]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as model files store them."""
        return {"names": list(self.names), "source_ids": list(self.source_ids)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ClassMap:
        """Read what `to_dict` returned."""
        return cls(tuple(map(str, data["names"])), tuple(map(int, data["source_ids"])))


@dataclass(frozen=True)
class Detection:
    """One object as files and the command line report it.

    Attributes:
        label: Class name.
        class_id: The data set's own category id.
        score: In [0, 1], rounded to 4 decimals.
        box_xyxy_px: Corners in pixels of the upright image, rounded to 2 decimals.
    """

    label: str
    class_id: int
    score: float
    box_xyxy_px: tuple[float, float, float, float]


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

    def rounded(self) -> list[Detection]:
        """The objects one by one, in the rounded numbers that every kind of output states."""
        rows = zip(self.labels, self.class_ids, self.scores, self.boxes_xyxy_px, strict=True)
        found = []
        for label, class_id, score, box in rows:
            x1, y1, x2, y2 = (round(float(v), 2) for v in box)
            found.append(Detection(label, int(class_id), round(float(score), 4), (x1, y1, x2, y2)))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values: width, height and a `detections` list as in a JSONL record."""
        return {
            "width": self.width,
            "height": self.height,
            "detections": [
                {
                    "label": found.label,
                    "class_id": found.class_id,
                    "score": found.score,
                    "box": list(found.box_xyxy_px),
                }
                for found in self.rounded()
            ],
        }
