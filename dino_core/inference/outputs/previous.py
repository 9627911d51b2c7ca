"""Reads back what an earlier run wrote, for `dino predict --skip-done`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dino_core.errors import DataError
from dino_core.files import is_abandoned, require_regular_file
from dino_core.inference.outputs.records import JSONL_NAME, to_json_line
from dino_core.inference.outputs.table import OUTPUTS
from dino_core.inference.prediction import Prediction

_MALFORMED = (
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
    IndexError,
    OverflowError,
    RecursionError,
)


@dataclass(frozen=True)
class Finished:
    """What an earlier run left.

    Attributes:
        predictions: The still images that it predicted, without their pixels, each once.
        broken: Where a line is not a record, e.g. `out/predictions.jsonl line 3`. The images of
            such lines are predicted again.
    """

    predictions: list[Prediction]
    broken: list[str]


def read_finished(out: Path) -> Finished:
    """The still images that earlier runs into `out` predicted, killed ones included.

    Unreadable images and frames of videos are left out: both are predicted again.

    Raises:
        DataError: the file there is not what `dino predict` writes: it cannot be read, or none of
            its lines is a record.
    """
    done: dict[str, Prediction] = {}
    broken: list[str] = []
    path = out / JSONL_NAME
    parts = sorted(_abandoned(out.glob(f".{JSONL_NAME}.*.part")))
    for file in [path, *parts]:
        good = 0
        wrong: list[str] = []
        reason = ""
        for number, line in enumerate(_lines(file), start=1):
            try:
                prediction = _record(line)
            except _MALFORMED as error:
                wrong.append(f"{file} line {number}")
                reason = reason or str(error) or type(error).__name__
                continue
            good += 1
            if prediction.error is None and prediction.frame is None:
                done[prediction.source] = prediction
        if file == path and wrong and not good:
            raise DataError(
                f"{path}: not a result of `dino predict` ({reason[:200]})",
                "remove it, or choose another --out",
            )
        broken += wrong if file == path else []  # the last line of a killed run is often cut off
    return Finished(list(done.values()), broken)


def abandoned_parts(out: Path) -> list[Path]:
    """The part files of runs into `out` that were killed."""
    found = list(out.glob(".*.part"))
    for output in OUTPUTS.values():
        for folder in output.folders:
            found += (out / folder).rglob(".*.part")
    return _abandoned(found)


def _abandoned(parts: Iterable[Path]) -> list[Path]:
    return [path for path in parts if is_abandoned(path) and path.is_file()]


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file that are not blank; none where there is no file."""
    try:
        require_regular_file(path)
        with path.open("rb") as file:
            yield from (line for line in file if line.strip())
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error})", "choose another --out"
        ) from error


def _record(line: bytes) -> Prediction:
    """Raises: one of `_MALFORMED` where the line is no record that we could write again."""
    prediction = Prediction.from_dict(json.loads(line))
    to_json_line(prediction)
    return prediction
