"""labelme's files against hand-worked numbers, and every malformed shape as a fault of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import image_file, record_of, text_file

from dino_core.data.load import load_dataset, read_dataset
from dino_core.data.records import DatasetIndex
from dino_core.data.save import save_dataset
from dino_core.detections import ClassMap
from dino_core.errors import DataError


def shape(label: Any = "cat", points: Any = ((10, 20), (30, 5)), **changes: Any) -> dict[str, Any]:
    """A rectangle between two opposite corners, in any order, as labelme writes it."""
    kept = {"label": label, "points": points, "shape_type": "rectangle", "flags": {}}
    return {**kept, "group_id": None, **changes}


def labels(*shapes: Any, **changes: Any) -> str:
    content = {"version": "5.4.1", "flags": {}, "shapes": list(shapes), "imagePath": "a.jpg",
               "imageData": None, "imageHeight": 30, "imageWidth": 40}  # fmt: skip
    return json.dumps({**content, **changes})


def labelme_set(root: Path, *shapes: Any, name: str = "a", **changes: Any) -> Path:
    image_file(root / f"{name}.jpg", (40, 30))
    changes = {"imagePath": f"{name}.jpg", **changes}
    return text_file(root / f"{name}.json", labels(*shapes, **changes))


def test_hand_worked_file(tmp_path: Path) -> None:
    shapes = [
        shape(),
        shape("dog", [[1, 2], [7.5, 2], [4, 9]], shape_type="polygon", flags={"difficult": True}),
        shape("dog", [[20, 15], [23, 19]], shape_type="circle"),  # radius 5
        shape("cat", [[0, 0], [5, 5]], shape_type="mask", mask="iVBOR"),
    ]
    labelme_set(tmp_path, *shapes)
    index = load_dataset(tmp_path, val_split=0)
    assert (index.format, index.classes.names) == ("labelme", ("cat", "dog"))
    (record,) = index.splits["train"]
    assert (record.image_id, record.path, record.width) == (1, tmp_path / "a.jpg", 40)
    assert record.boxes_xyxy_px.tolist() == [
        [10, 5, 30, 20], [1, 2, 7.5, 9], [15, 10, 25, 20], [0, 0, 5, 5],
    ]  # fmt: skip
    assert record.class_indices.tolist() == [0, 1, 1, 0]
    assert record.flags["difficult"].tolist() == [False, True, False, False]
    assert [(f.kind, f.place.rpartition(": ")[2]) for f in index.faults] == [
        ("outline-label", "polygon"), ("outline-label", "circle"), ("outline-label", "mask"),
    ]  # fmt: skip


def test_parts_of_one_group_are_one_object(tmp_path: Path) -> None:
    parts = [shape("cat", [[0, 0], [4, 4]], group_id=7), shape("cat", [[8, 2], [9, 9]], group_id=7)]
    labelme_set(tmp_path, *parts, shape("dog", [[1, 1], [2, 2]], group_id=7))
    (record,) = load_dataset(tmp_path, val_split=0).splits["train"]
    assert record.boxes_xyxy_px.tolist() == [[0, 0, 9, 9], [1, 1, 2, 2]]


@pytest.mark.parametrize("where", ["", "annotations", "json"])
def test_splits_and_folders_of_labels(tmp_path: Path, where: str) -> None:
    for split, name in (("train", "a"), ("valid", "b")):
        image_file(tmp_path / split / f"{name}.jpg", (40, 30))
        file = tmp_path / split / where / f"{name}.json"
        text_file(file, labels(shape(), imagePath=f"..\\x\\{name}.jpg"))
    index = load_dataset(tmp_path)
    assert {split: [r.path.name for r in records] for split, records in index.splits.items()} == {
        "train": ["a.jpg"],
        "val": ["b.jpg"],
    }
    assert index.faults == ()


def test_boxes_are_scaled_to_a_resized_image(tmp_path: Path) -> None:
    labelme_set(tmp_path, shape(), imageHeight=60, imageWidth=80)
    index = load_dataset(tmp_path, val_split=0)
    assert index.splits["train"][0].boxes_xyxy_px.tolist() == [[5, 2.5, 15, 10]]
    assert [f.kind for f in index.faults] == ["other-size"]


def test_the_picture_inside_a_file_does_not_hide_what_it_is(tmp_path: Path) -> None:
    image_file(tmp_path / "a.jpg", (40, 30))
    content = {"imageData": "A" * 9000, "imagePath": "a.jpg", "shapes": [shape()]}
    text_file(tmp_path / "a.json", json.dumps({"imagePath": "a.jpg", **content}))
    assert load_dataset(tmp_path, val_split=0).format == "labelme"


def test_six_kinds_of_malformed_labels_in_six_files(tmp_path: Path) -> None:
    bad = {
        "a": "{",
        "b": labels(shape(), shape(label=None)),
        "c": labels(shape(), shape(points=[[1, 2]])),
        "d": labels(shape(), shape(points=[["x", 2], [3, 4]])),
        "e": labels(shape(), 3),
        "f": labels(shape(), shape(points=[[1, 2], [float("nan"), 4]])),
    }
    for name, text in bad.items():
        image_file(tmp_path / f"{name}.jpg", (40, 30))
        text_file(tmp_path / f"{name}.json", text)
    index = load_dataset(tmp_path, val_split=0)
    assert [f.kind for f in index.faults] == ["malformed-file", *["malformed-label"] * 5]
    places = [fault.place.replace(f"{tmp_path}/", "") for fault in index.faults]
    for name, place, what in zip(
        bad, places, ["line 1", "label is None", "1 points", "numbers of pixels", "is 3", "nan"],
        strict=True,
    ):  # fmt: skip
        assert place.startswith(f"{name}.json") and what in place
        assert name == "a" or "shapes[1]" in place
    assert [len(record.class_indices) for record in index.splits["train"]] == [1] * 5


@pytest.mark.parametrize("kind", ["point", "points", "line", "linestrip", 3])
def test_what_has_no_area_is_left_out(tmp_path: Path, kind: Any) -> None:
    labelme_set(tmp_path, shape(), shape("dog", [[1, 2], [3, 4]], shape_type=kind))
    index = load_dataset(tmp_path, val_split=0)
    assert index.classes.names == ("cat",)
    assert f"shapes[1]: a {kind} has no area" in index.faults[0].place


@pytest.mark.parametrize("size", [(0, 30), ("wide", 30), (40, 2.5), (10**400, 30)])
def test_sizes_that_cannot_be_are_ignored(tmp_path: Path, size: tuple[Any, Any]) -> None:
    labelme_set(tmp_path, shape(), imageWidth=size[0], imageHeight=size[1])
    index = load_dataset(tmp_path, val_split=0)
    assert index.splits["train"][0].boxes_xyxy_px.tolist() == [[10, 5, 30, 20]]
    assert [f.kind for f in index.faults] == ["malformed-size"]


def test_nothing_usable(tmp_path: Path) -> None:
    labelme_set(tmp_path, shape(points=None))
    assert [f.kind for f in read_dataset(tmp_path).faults] == ["malformed-label", "labels-lost"]
    with pytest.raises(DataError, match=r"a\.json: shapes\[0\]: points are None"):
        load_dataset(tmp_path)


def test_written_set_reads_back_the_same(tmp_path: Path) -> None:
    path = image_file(tmp_path / "in" / "a.jpg", (40, 30))
    marks = [{"difficult"}, set()]
    record = record_of(path, (40, 30), [[0.1, 0, 10, 12.3], [5, 5, 6, 6]], [1, 0], flags=marks)
    empty = record_of(image_file(tmp_path / "in" / "b.jpg", (40, 30)), (40, 30), image_id=2)
    before = DatasetIndex(
        tmp_path, "coco", ClassMap.from_names(["cat", "dog"]), {"val": (record, empty)}
    )
    assert save_dataset(before, tmp_path / "out", "labelme") == []
    content = json.loads((tmp_path / "out" / "val" / "a.json").read_text())
    assert content["shapes"][0]["points"] == [[0.1, 0.0], [10.0, 12.3]]
    after = load_dataset(tmp_path / "out", val_split=0)
    assert (after.format, after.classes, after.faults) == ("labelme", before.classes, ())
    for old, new in zip(before.splits["val"], after.splits["val"], strict=True):
        np.testing.assert_array_equal(new.boxes_xyxy_px, old.boxes_xyxy_px)
        np.testing.assert_array_equal(new.class_indices, old.class_indices)
        assert new.path.name == old.path.name
    assert after.splits["val"][0].flags["difficult"].tolist() == [True, False]


def test_what_labelme_cannot_hold_is_listed(tmp_path: Path) -> None:
    path = image_file(tmp_path / "a.jpg")
    record = record_of(
        path, (40, 20), [[0, 0, 10, 10], [0, 0, 40, 20]], [0, 1], 17,
        is_crowd=[False, True], areas=[50.0, None],
    )  # fmt: skip
    classes = ClassMap(("cat", "dog"), (3, 8))
    lost = save_dataset(
        DatasetIndex(tmp_path, "coco", classes, {"train": (record,)}), tmp_path / "out", "labelme"
    )
    assert [sentence.split(" ")[0] for sentence in lost] == [
        "1", "classes", "the", "train:", "areas",
    ]  # fmt: skip  # crowds, unused classes, ids, image ids, areas
