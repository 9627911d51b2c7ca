"""Six kinds of malformed labels in six files, in every format: `dino check` lists all six.

COCO and CSV have at most one file per split, so their six are spread over three files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import image_file, text_file

from dino_cli.app import run
from dino_core.data.fault_kinds import KINDS
from dino_core.data.formats.table import FORMATS

NAMES = ("a", "b", "c", "d", "e", "f", "g")  # the last one is sound
GOOD_VOC = (
    "<object><name>cat</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>15</ymax>"
    "</bndbox></object>"
)
VOC = "<annotation><filename>{}.jpg</filename>{}</annotation>"


def make_yolo(root: Path, good: bool) -> list[str]:
    bad = ["0 0.5 0.5 0.2", "x 0.5 0.5 0.2 0.2", "9 0.5 0.5 0.2 0.2", "0.5 0.5 0.5 0.2 0.2",
           "0 0.5 nan 0.2 0.2", "0 20 10 8 8"]  # fmt: skip
    for name, line in zip(NAMES, [*bad, ""], strict=True):
        image_file(root / f"images/train/{name}.jpg")
        lines = ["0 0.5 0.5 0.3 0.3\n" if good else "", line]
        text_file(root / f"labels/train/{name}.txt", "".join(lines))
    text_file(root / "data.yaml", "train: images/train\nnames: [cat]\n")
    return [f"labels/train/{name}.txt line {2 if good else 1}" for name in NAMES[:6]]


def make_voc(root: Path, good: bool) -> list[str]:
    bad = [
        "<object><name></name><bndbox/></object>",
        "<object><name>cat</name></object>",
        "<object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object>",
        GOOD_VOC.replace("<xmin>2<", "<xmin>two<"),
        GOOD_VOC.replace("<ymax>15<", "<ymax>inf<"),
    ]
    texts = [
        VOC.format(n, (GOOD_VOC if good else "") + line)
        for n, line in zip("abcde", bad, strict=True)
    ]
    texts += ["<annotation>", VOC.format("g", GOOD_VOC if good else "")]
    for name, text in zip(NAMES, texts, strict=True):
        image_file(root / f"JPEGImages/{name}.jpg")
        text_file(root / f"Annotations/{name}.xml", text)
    return [f"Annotations/{name}.xml line 1" for name in NAMES[:6]]


def make_labelme(root: Path, good: bool) -> list[str]:
    shape = {"label": "cat", "points": [[2, 3], [20, 15]], "shape_type": "rectangle"}
    bad: list[Any] = [
        {**shape, "label": 3}, {**shape, "points": [[1, 2]]}, {**shape, "points": [["x", 1]]},
        {**shape, "shape_type": "point"}, None,
    ]  # fmt: skip
    texts = [
        json.dumps({"shapes": [*([shape] if good else []), each], "imagePath": f"{name}.jpg"})
        for name, each in zip(NAMES[:5], bad, strict=True)
    ]
    texts += ["{", json.dumps({"shapes": [shape] if good else [], "imagePath": "g.jpg"})]
    for name, text in zip(NAMES, texts, strict=True):
        image_file(root / f"{name}.jpg")
        text_file(root / f"{name}.json", text)
    at = 1 if good else 0
    return [*(f"{name}.json: shapes[{at}]" for name in NAMES[:5]), "f.json line 1"]


def make_coco(root: Path, good: bool) -> list[str]:
    sound = {"category_id": 1, "bbox": [2, 3, 18, 12]}
    bad: list[Any] = [
        {**sound, "bbox": [1, 2, 3]}, {**sound, "bbox": "wide"}, {**sound, "category_id": "cat"},
        {"bbox": [1, 2, 3, 4]}, {**sound, "bbox": [1, 2, float("nan"), 4]}, [],
    ]  # fmt: skip
    places = []
    for s, split in enumerate(("train", "val", "test")):
        names = NAMES[2 * s : 2 * s + 2]
        images = [{"id": i, "file_name": f"{n}.jpg"} for i, n in enumerate(names, start=1)]
        entries = [{**sound, "image_id": 1}] if good else []
        for i, each in enumerate(bad[2 * s : 2 * s + 2], start=1):
            places.append(f"instances_{split}.json: annotations[{len(entries)}]")
            entries.append({**each, "image_id": i} if isinstance(each, dict) else each)
        for name in names:
            image_file(root / f"images/{split}/{name}.jpg")
        table = {"images": images, "annotations": entries,
                 "categories": [{"id": 1, "name": "cat"}]}  # fmt: skip
        text_file(root / f"annotations/instances_{split}.json", json.dumps(table))
    return places


def make_csv(root: Path, good: bool) -> list[str]:
    header = "filename,class,xmin,ymin,xmax,ymax\n"
    bad = ["a.jpg,cat,1,2,3", "b.jpg,cat,one,2,30,10", "c.jpg,,1,2,30,10", ",cat,1,2,30,10",
           "e.jpg,cat,1,2,inf,10", "f.jpg,cat,1,2,30,10,7"]  # fmt: skip
    places = []
    for s, split in enumerate(("train", "valid", "test")):
        rows = [f"{NAMES[2 * s]}.jpg,cat,2,3,20,15\n"] if good else []
        for row in bad[2 * s : 2 * s + 2]:
            rows.append(f"{row}\n")
            places.append(f"{split}/_annotations.csv line {1 + len(rows)}")
        for name in NAMES[2 * s : 2 * s + 2]:
            image_file(root / split / f"{name}.jpg")
        text_file(root / split / "_annotations.csv", header + "".join(rows))
    return places


MAKERS: dict[str, Callable[[Path, bool], list[str]]] = {
    "coco": make_coco,
    "yolo": make_yolo,
    "voc": make_voc,
    "labelme": make_labelme,
    "csv": make_csv,
}


def test_every_format_is_tried() -> None:
    assert MAKERS.keys() == FORMATS.keys()


@pytest.mark.parametrize("format", MAKERS)
@pytest.mark.parametrize("good", [True, False], ids=["among-good-ones", "alone"])
def test_all_six_are_listed_with_their_places(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    format: str,
    good: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = MAKERS[format](tmp_path / "data", good)
    assert run(["check", "data", "--json", "--format", format]) == (0 if good else 3)
    answer = json.loads(capsys.readouterr().out)
    assert run(["check", "data", "--strict", "--format", format]) == 3
    listed = [
        example["detail"]
        for finding in answer["findings"]
        if finding["kind"] in ("malformed-label", "malformed-file", "unknown-class")
        for example in finding["examples"]
    ]
    assert len(listed) == 6
    assert all(any(place in detail for detail in listed) for place in places), listed
    assert all(KINDS[f["kind"]].hint == f["hint"] for f in answer["findings"])
    if good:
        assert sum(split["boxes"] for split in answer["splits"].values()) >= 3
