"""A data set checked: at once what its labels tell, and with every image decoded the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dino_core.config import PreprocessConfig
from dino_core.data.check.boxes import check_boxes
from dino_core.data.check.collection import check_collection, class_counts
from dino_core.data.check.files import check_files
from dino_core.data.check.findings import CheckReport, Collector, Finding, SplitSize
from dino_core.data.check.images import ImageFacts, examine_all
from dino_core.data.check.reading import check_reading
from dino_core.data.records import DatasetIndex
from dino_core.variants import VARIANTS

_NANO_INPUT = VARIANTS["dino-nano"].preprocess


@dataclass(frozen=True)
class ImagesDecoded:
    """Progress of a check: so many of the images were decoded."""

    done: int
    total: int


def quick_findings(
    dataset: DatasetIndex, preprocess: PreprocessConfig = _NANO_INPUT
) -> list[Finding]:
    """What labels and the reader's warnings tell, no image opened; gravest first.

    Args:
        dataset: The data; its warnings are among the findings.
        preprocess: The model's input, by which boxes are tiny.
    """
    return list(_checked_labels(dataset, preprocess).findings())


def check_steps(
    dataset: DatasetIndex, workers: int = 0, preprocess: PreprocessConfig = _NANO_INPUT
) -> Iterator[ImagesDecoded | CheckReport]:
    """Check a data set, images too: progress as it goes, at the end the report.

    Args:
        dataset: The data, best loaded with `val_split=0`: a split made up now is no one's fault.
        workers: Processes that decode; 0 for this one only. Processes are spawned, so that a script
            that asks for them needs `if __name__ == "__main__":`.
        preprocess: The model's input, by which boxes are tiny.

    Raises:
        DataError: a process that decodes died.
    """
    found = _checked_labels(dataset, preprocess)
    paths = list(dict.fromkeys(r.path for records in dataset.splits.values() for r in records))
    facts: list[ImageFacts] = []
    yield ImagesDecoded(0, len(paths))
    for one in examine_all(paths, workers):
        facts.append(one)
        yield ImagesDecoded(len(facts), len(paths))
    check_files(dataset, facts, found)
    yield _report(dataset, len(facts), found)


def _checked_labels(dataset: DatasetIndex, preprocess: PreprocessConfig) -> Collector:
    found = Collector()
    check_reading(dataset, found)
    check_collection(dataset, found)
    check_boxes(dataset, preprocess, found)
    return found


def _report(dataset: DatasetIndex, images_decoded: int, found: Collector) -> CheckReport:
    counts = class_counts(dataset)
    splits = {
        name: SplitSize(len(records), int(counts[name].sum()))
        for name, records in dataset.splits.items()
    }
    total = sum(counts.values(), np.zeros(len(dataset.classes), np.int64))
    names = dataset.classes.names
    boxes_of_class = {name: int(n) for name, n in zip(names, total, strict=True) if name}
    return CheckReport(
        dataset.root, dataset.format, splits, boxes_of_class, images_decoded, found.findings()
    )
