"""Faults of the decoded files: broken, turned by EXIF, equal and nearly equal ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dino_core.data.check.boxes import marked_boxes
from dino_core.data.check.images import ImageFacts
from dino_core.data.check.similar import near_pairs
from dino_core.data.faults import FaultLog
from dino_core.data.records import DatasetIndex

_TURNS = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "upside down and mirrored",
    5: "turned by 90 degrees and mirrored",
    6: "turned by 90 degrees",
    7: "turned by 270 degrees and mirrored",
    8: "turned by 270 degrees",
}  # EXIF orientation to what the stored pixels are


def check_files(dataset: DatasetIndex, facts: Sequence[ImageFacts], log: FaultLog) -> None:
    """Record what is wrong with single files and between files.

    Args:
        dataset: Whose files they are.
        facts: What is known of every file, each once.
        log: Records what is found.
    """
    split_of = {r.path: split for split, records in dataset.splits.items() for r in records}
    _check_single(dataset, facts, log)
    originals = _check_equal(facts, split_of, log)
    _check_alike(originals, split_of, log)


def _check_single(dataset: DatasetIndex, facts: Sequence[ImageFacts], log: FaultLog) -> None:
    record_of = {record.path: record for record in dataset.records}
    for one in facts:
        if one.problem:
            log.add(one.problem, f"{one.path}: {one.reason}", (one.path,))
            continue
        if one.remark:
            log.add(one.remark, str(one.path), (one.path,))
        if one.orientation in _TURNS:
            record = record_of[one.path]
            turn = f"stored {_TURNS[one.orientation]} (orientation {one.orientation})"
            boxes = marked_boxes(record, dataset.classes.names)
            log.add("exif-rotated", f"{one.path}: {turn}", (one.path,), boxes)


def _check_equal(
    facts: Sequence[ImageFacts], split_of: Mapping[Path, str], log: FaultLog
) -> list[ImageFacts]:
    """Record files with equal bytes; returns one of each group, without broken ones."""
    groups: dict[bytes, list[ImageFacts]] = {}
    for one in facts:
        if not one.problem:
            groups.setdefault(one.digest, []).append(one)
    for group in groups.values():
        if len(group) > 1:
            paths = tuple(one.path for one in group)
            splits = [split_of[path] for path in paths]
            kind = "duplicate-image" if len(set(splits)) == 1 else "duplicate-across-splits"
            listed = " = ".join(f"{path} ({s})" for path, s in zip(paths, splits, strict=True))
            log.add(kind, listed, paths)
    return [group[0] for group in groups.values()]


def _check_alike(facts: Sequence[ImageFacts], split_of: Mapping[Path, str], log: FaultLog) -> None:
    """Record each image that nearly equals an earlier one, with the closest; other splits first."""
    hashed = [one for one in facts if one.phash is not None and one.small is not None]
    hashes = np.array([one.phash for one in hashed], np.uint64)
    smalls = np.array([one.small for one in hashed], np.uint8)
    pairs, distances = near_pairs(hashes, smalls)
    closest: dict[int, tuple[bool, int, int]] = {}  # later image: same split, bits, earlier image
    for (first, second), bits in zip(pairs.tolist(), distances.tolist(), strict=True):
        same = split_of[hashed[first].path] == split_of[hashed[second].path]
        candidate = (same, bits, first)
        closest[second] = min(closest.get(second, candidate), candidate)
    for second, (same, bits, first) in sorted(closest.items()):
        paths = (hashed[second].path, hashed[first].path)
        pair = " ~ ".join(f"{path} ({split_of[path]})" for path in paths)
        kind = "near-duplicate-image" if same else "near-duplicate-across-splits"
        log.add(kind, f"{pair}: {bits} of 64 bits differ", paths)
