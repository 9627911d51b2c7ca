"""Where COCO sets keep their files and images: every layout that is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import coco_set, coco_table, image_file

from dino_core.data.load import load_dataset, read_dataset
from dino_core.errors import DataError


@pytest.mark.parametrize(
    ("json_name", "image_dir", "split"),
    [
        ("annotations/instances_train.json", "images/train", "train"),
        ("annotations/instances_train2017.json", "train2017", "train"),
        ("annotations/instances_val2017.json", "images/val2017", "val"),
        ("annotations/train.json", "images", "train"),
        ("annotations/val.json", "val", "val"),
        ("valid/_annotations.coco.json", "valid", "val"),
        ("train.json", "train", "train"),
        ("labels/val.json", "images/val", "val"),
        ("annotations/valSet.json", "images", "val"),
        ("Annotations/trainData.json", "images", "train"),
        ("annotation/instances_val.json", "images/val", "val"),
        ("coco/train.json", "images", "train"),
        ("annotations_trainval2017/annotations/instances_val2017.json", "val2017/val2017", "val"),
        ("labels.json", ".", "train"),
        ("labels.json", "data", "train"),
    ],
)
def test_layouts(tmp_path: Path, json_name: str, image_dir: str, split: str) -> None:
    for name in ("a.jpg", "b.jpg"):
        image_file(tmp_path / image_dir / name, (40, 30))
    file = tmp_path / json_name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(coco_table()))
    for path in (tmp_path, file):
        index = load_dataset(path, val_split=0)
        assert index.format == "coco" and index.warnings == ()
        assert list(index.splits) == [split]
        assert [r.path.name for r in index.splits[split]] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("json_name", "image_dir"),
    [("annotations.json", "images"), ("labels.json", "data"), ("annotations/x.json", ".")],
)
def test_a_file_in_each_split_folder(tmp_path: Path, json_name: str, image_dir: str) -> None:
    for folder in ("train", "valid"):
        for name in ("a.jpg", "b.jpg"):
            image_file(tmp_path / folder / image_dir / name, (40, 30))
        file = tmp_path / folder / json_name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(coco_table()))
    index = read_dataset(tmp_path, "coco")
    assert list(index.splits) == ["train", "val"]
    assert [r.path.relative_to(tmp_path).parts[0] for r in index.splits["val"]] == ["valid"] * 2


def test_file_names_with_folders_and_backslashes(tmp_path: Path) -> None:
    table = coco_table()
    table["images"][0]["file_name"] = "images\\train\\a.jpg"
    table["images"][1]["file_name"] = "train/b.jpg"
    coco_set(tmp_path, table)
    assert len(read_dataset(tmp_path, "coco").splits["train"]) == 2


@pytest.mark.parametrize(
    "name",
    [
        "/home/me/set/images/train/a.jpg",
        "C:\\Users\\me\\train\\a.jpg",
        "../../media/upload/1/a.jpg",
        "http://images.example.org/train/a.jpg",
    ],
)
def test_file_names_of_another_machine(tmp_path: Path, name: str) -> None:
    table = coco_table()
    table["images"][0]["file_name"] = name
    coco_set(tmp_path, table)
    record = read_dataset(tmp_path, "coco").splits["train"][0]
    assert record.path == tmp_path / "images/train/a.jpg"


def test_images_in_unusual_folders_are_found_by_name(tmp_path: Path) -> None:
    coco_set(tmp_path, coco_table())
    deep = tmp_path / "shots/2020/may"
    deep.parent.mkdir(parents=True)
    (tmp_path / "images/train").rename(deep)
    assert [r.path for r in read_dataset(tmp_path, "coco").splits["train"]] == [
        deep / "a.jpg",
        deep / "b.jpg",
    ]
    (tmp_path / "shots/2021").mkdir()
    (deep / "a.jpg").rename(tmp_path / "shots/2021/b.jpg")  # two of that name: which is meant?
    with pytest.raises(DataError, match="none of its 2 images was found"):
        load_dataset(tmp_path, "coco")


def test_a_file_whose_name_tells_no_split_is_train(tmp_path: Path) -> None:
    file = coco_set(tmp_path, coco_table(), "val")
    (tmp_path / "images/val").rename(tmp_path / "images/all")
    for name in ("all.json", "dataset-metadata.json"):
        (file.parent / name).write_text(json.dumps(coco_table()))
    file.rename(file.parent / "val.json")
    (file.parent / "dataset-metadata.json").write_text('{"title": "pets", "licenses": [{}]}')
    assert list(read_dataset(tmp_path, "coco").splits) == ["train", "val"]


def test_a_test_file_needs_no_annotations(tmp_path: Path) -> None:
    for split in ("train", "test"):
        table = coco_table()
        if split == "test":
            del table["annotations"]
        coco_set(tmp_path, table, split)
    index = read_dataset(tmp_path, "coco")
    assert [len(record.boxes_xyxy_px) for record in index.splits["test"]] == [0, 0]


def test_two_files_of_one_split_are_ambiguous(tmp_path: Path) -> None:
    for year in ("2014", "2017"):
        coco_set(tmp_path, coco_table(), f"train{year}")
    with pytest.raises(DataError, match=r"instances_train2014\.json and instances_train2017\.json"):
        read_dataset(tmp_path, "coco")


def test_other_json_beside_the_instances_is_ignored(tmp_path: Path) -> None:
    file = coco_set(tmp_path, coco_table())
    (file.parent / "captions_train.json").write_text("{}")
    (file.parent / "coco80_val.json").write_text("{}")
    assert list(read_dataset(tmp_path, "coco").splits) == ["train"]
