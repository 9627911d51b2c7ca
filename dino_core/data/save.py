"""A data set written to disk in a chosen format."""

from __future__ import annotations

from pathlib import Path

from dino_core.data.formats.table import FORMATS, require_format
from dino_core.data.records import DatasetIndex
from dino_core.errors import DataError
from dino_core.files import write_errors

_FREE_SPACE = "free some space, or choose another folder"


def save_dataset(dataset: DatasetIndex, path: str | Path, format: str) -> list[str]:
    """Write a data set, images included, into a folder.

    Example:
        >>> save_dataset(load_dataset("data/"), "out/", format="yolo")

    Args:
        dataset: What `load_dataset` returned.
        path: The folder to write into; made where it does not exist.
        format: A key of `formats.table.FORMATS`, e.g. "coco".

    Returns:
        What the format could not hold, one sentence each.

    Raises:
        ConfigError: an unknown format.
        DataError: the folder cannot be written, or the format cannot hold a data set without boxes.
    """
    require_format(format)
    with write_errors(
        Path(path), DataError, kept="it holds a part of the images", hint=_FREE_SPACE
    ):
        return FORMATS[format].write(dataset, Path(path))
