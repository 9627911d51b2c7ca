"""Class names that differ little may be one class, written in two ways."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import image_file, text_file

from dino_core.data.check.run import quick_findings
from dino_core.data.load import read_dataset


def pairs(folder: Path, *names: str) -> list[str]:
    image_file(folder / "a.jpg")
    rows = [f"a.jpg,{name},1,2,{i + 5},9" for i, name in enumerate(names)]
    text_file(folder / "a.csv", "\n".join(["filename,class,xmin,ymin,xmax,ymax", *rows]))
    findings = quick_findings(read_dataset(folder))
    found = [each for each in findings if each.kind == "similar-classes"]
    return [example.place for each in found for example in each.examples]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Person", "person"),
        ("car", "cars"),
        ("box", "boxes"),
        ("traffic light", "traffic_light"),
        ("motor bike", "motorbike"),
        ("motorcycle", "motorcyle"),
        ("helicopter", "helikopter"),
    ],
)
def test_pairs_that_may_be_one(tmp_path: Path, first: str, second: str) -> None:
    assert pairs(tmp_path, first, "other", second) == [" and ".join(sorted((first, second)))]


def test_names_that_differ_enough(tmp_path: Path) -> None:
    names = ("cat", "bat", "dog", "lane1", "lane2", "class_10", "class_11", "bus", "bu", "sheep",
             "人", "车", "mouse", "house", "fork", "truck", "train")  # fmt: skip
    assert pairs(tmp_path, *names) == []
