"""Image files of a data set: found in folders, copied under unique names."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dino_core.data.formats.values import SURROGATES
from dino_core.data.records import ImageRecord
from dino_core.processing.image_files import IMAGE_SUFFIXES

_LIKELIEST = sorted(IMAGE_SUFFIXES, key=lambda suffix: (suffix != ".jpg", suffix != ".png", suffix))


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder and its subfolders, sorted; hidden ones left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def with_suffixes(stem: str) -> list[str]:
    """The names an image file of that stem may have, the likeliest first."""
    return [stem + suffix for case in (str, str.upper) for suffix in map(case, _LIKELIEST)]


def unique_names(records: Sequence[ImageRecord]) -> list[str]:
    """A file name for each record: its own, or with its folder or a number where that is taken.

    No two names differ only in suffix or case, so that label files can be named after them, and
    none has bytes that are not UTF-8, which no label file can hold.
    """
    taken: set[str] = set()
    names: list[str] = []
    for record in records:
        stem, suffix = SURROGATES.sub("_", record.path.stem), record.path.suffix
        folder = SURROGATES.sub("_", record.path.parent.name)
        candidate, number = stem, 1
        # macOS and Windows do not distinguish case, so neither may the names.
        while candidate.lower() in taken:
            candidate = f"{folder}_{stem}" + (f"_{number}" if number > 1 else "")
            number += 1
        taken.add(candidate.lower())
        names.append(candidate + suffix)
    return names


def copy_images(
    records: Sequence[ImageRecord], names: Sequence[str], folder: Path, lost: list[str]
) -> None:
    """Copy each record's image to `folder` under its name; renamed ones are noted in `lost`."""
    folder.mkdir(parents=True, exist_ok=True)
    for record, name in zip(records, names, strict=True):
        target = folder / name
        # Converting a data set into its own folder must not truncate its images.
        if not (target.exists() and target.samefile(record.path)):
            shutil.copyfile(record.path, target)
    renamed = [(r.path, n) for r, n in zip(records, names, strict=True) if r.path.name != n]
    if renamed:
        path, name = renamed[0]
        number = "1 image was" if len(renamed) == 1 else f"{len(renamed)} images were"
        lost.append(
            f"{number} renamed, because the name was taken or not UTF-8"
            f" (first: {path} became {folder / name})"
        )


def number_text(value: np.float32) -> str:
    """The shortest decimal that reads back as the same number, without an exponent."""
    return np.format_float_positional(value, trim="-")
