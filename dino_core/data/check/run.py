"""A data set checked: at once what its labels show, and with every image decoded the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dino_core.config import PreprocessConfig
from dino_core.data.check.boxes import check_boxes
from dino_core.data.check.collection import check_collection, class_counts
from dino_core.data.check.files import check_files
from dino_core.data.check.findings import CheckReport, Finding, SplitSize, findings_of
from dino_core.data.check.images import ImageFacts
from dino_core.data.faults import FaultLog
from dino_core.data.records import DatasetIndex
from dino_core.variants import VARIANTS

_NANO_INPUT = VARIANTS["dino-nano"].preprocess


def quick_findings(
    dataset: DatasetIndex, preprocess: PreprocessConfig = _NANO_INPUT
) -> tuple[Finding, ...]:
    """What the labels and their reader show, without opening an image; errors first.

    Args:
        dataset: The data; its faults are among the findings.
        preprocess: The model's input, which decides whether a box is tiny.
    """
    return findings_of(_checked_labels(dataset, preprocess).faults())


def image_files(dataset: DatasetIndex) -> list[Path]:
    """Every image file of a data set, each once: what `images.examine_all` is to decode."""
    return list(dict.fromkeys(record.path for record in dataset.records))


def check_dataset(
    dataset: DatasetIndex,
    facts: Sequence[ImageFacts],
    preprocess: PreprocessConfig = _NANO_INPUT,
) -> CheckReport:
    """The report on a data set whose images were decoded.

    Example:
        >>> dataset = read_dataset("data/")
        >>> facts = list(examine_all(image_files(dataset)))
        >>> report = check_dataset(dataset, facts)

    Args:
        dataset: The data, best read without a validation split that is made up on loading.
        facts: What `images.examine_all` found out about each of `image_files(dataset)`.
        preprocess: The model's input, which decides whether a box is tiny.
    """
    log = _checked_labels(dataset, preprocess)
    check_files(dataset, facts, log)
    counts = class_counts(dataset)
    splits = {
        name: SplitSize(len(records), int(counts[name].sum()))
        for name, records in dataset.splits.items()
    }
    total = sum(counts.values(), np.zeros(len(dataset.classes), np.int64))
    names = dataset.classes.names
    boxes_of_class = {name: int(n) for name, n in zip(names, total, strict=True) if name}
    findings = findings_of(log.faults())
    return CheckReport(dataset.root, dataset.format, splits, boxes_of_class, len(facts), findings)


def _checked_labels(dataset: DatasetIndex, preprocess: PreprocessConfig) -> FaultLog:
    log = FaultLog(dataset.faults)
    check_collection(dataset, log)
    check_boxes(dataset, preprocess, log)
    return log
