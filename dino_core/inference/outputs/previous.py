"""Reads back what an earlier run wrote, for `dino predict --skip-done`."""

from __future__ import annotations

import json
from pathlib import Path

from dino_core.errors import DataError
from dino_core.inference.outputs.records import JSONL_NAME
from dino_core.inference.prediction import Prediction


def read_finished(out: Path) -> list[Prediction]:
    """The still images that an earlier run into `out` predicted, without their pixels.

    Unreadable images and frames of videos are left out: both are predicted again.

    Raises:
        DataError: the file there is not what `dino predict` writes.
    """
    path = out / JSONL_NAME
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        predictions = [Prediction.from_dict(json.loads(line)) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path}: not a result of `dino predict` ({error})",
            "remove it, or choose another --out",
        ) from error
    return [p for p in predictions if p.error is None and p.frame is None]
