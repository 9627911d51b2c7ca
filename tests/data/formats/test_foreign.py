"""Folders and files of other tools: the error names what they are, and the way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import coco_set, coco_table, image_file, text_file

from dino_core.data.load import load_dataset, read_dataset
from dino_core.errors import DataError

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
BOX = {"label": "cat", "coordinates": {"x": 35, "y": 50, "width": 50, "height": 60}}
RESULT = {"type": "rectanglelabels", "value": {"x": 5, "rectanglelabels": ["cat"]}}
VIA = {"a.jpg1": {"filename": "a.jpg", "size": 1, "regions": [{"shape_attributes": {}}]}}
TOOLS = [
    ("annotations.xml", '<?xml version="1.0"?>\n<annotations><version>1.1</version><meta/>',
     "CVAT"),
    ("annotations.xml", '<annotations><image id="0" name="a.jpg"></image></annotations>', "CVAT"),
    ("project-1.json", json.dumps([{"id": 1, "annotations": [{"result": [RESULT]}]}]),
     "Label Studio"),
    ("via_region_data.json", json.dumps(VIA), "VIA"),
    ("_annotations.createml.json", json.dumps([{"image": "a.jpg", "annotations": [BOX]}]),
     "CreateML"),
    ("metadata.jsonl", '{"file_name": "a.jpg", "objects": {"bbox": [[1, 2, 3, 4]]}}\n',
     "Hugging Face"),
    ("label_2/a.txt", "Car 0.00 0 -1.58 587.01 173.33 614.12 200.12 1.65 1.67 3.64 -0.65 1.71 "
     "46.70 -1.59\n", "KITTI"),
    ("a.jpg.json", '{"objects": [{"classTitle": "cat", "points": {"exterior": []}}]}',
     "Supervisely"),
    ("labels.json", '[{"name": "a.jpg", "labels": [{"category": "car", "box2d": {"x1": 1}}]}]',
     "BDD100K"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "tool"), TOOLS)
@pytest.mark.parametrize("folder", ["", "train"])
def test_the_tool_and_the_way_out_are_named(
    tmp_path: Path, folder: str, name: str, text: str, tool: str
) -> None:
    file = text_file(tmp_path / folder / name, text)
    image_file(tmp_path / folder / "a.jpg")
    paths = [tmp_path] if file.suffix == ".txt" else [tmp_path, file]
    for path in paths:
        message = f"{name}: labels of .*{tool}.*, which are not read yet"
        with pytest.raises(DataError, match=message) as error:
            read_dataset(path)
        assert error.value.hint == "export it as COCO or YOLO there"


def test_two_coco_files_are_both_named(tmp_path: Path) -> None:
    for name in ("part1.json", "part2.json"):
        text_file(tmp_path / name, json.dumps(coco_table()))
    with pytest.raises(DataError, match=r"several COCO files, part1\.json, part2\.json") as error:
        read_dataset(tmp_path)
    assert error.value.hint == "give one of them, or name them train.json and val.json"
    assert read_dataset(tmp_path / "part1.json").format == "coco"


def test_the_columns_of_a_lone_table_are_named(tmp_path: Path) -> None:
    text_file(tmp_path / "labels.csv", "photo,links,oben,rechts,unten\na.jpg,1,2,3,4\n")
    with pytest.raises(DataError, match=r"labels\.csv line 1: the columns are photo, links, oben"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("suffix", [".HEIC", ".heif"])
def test_heic_images_are_named(tmp_path: Path, suffix: str) -> None:
    for name in "ab":
        (tmp_path / f"{name}{suffix}").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DataError, match="found 2 HEIC images, which are not read") as error:
        read_dataset(tmp_path)
    assert "heif-convert" in error.value.hint


def test_an_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"PK\3\4")
    for path in (tmp_path, tmp_path / "data.zip"):
        with pytest.raises(DataError, match="archive"):
            read_dataset(path)


def test_pointers_of_git_lfs_are_named(tmp_path: Path) -> None:
    file = coco_set(tmp_path, coco_table())
    for name in ("a.jpg", "b.jpg"):
        text_file(tmp_path / "images/train" / name, POINTER)
    with pytest.raises(DataError, match=r"a\.jpg: a Git LFS pointer.*`git lfs pull`"):
        load_dataset(tmp_path)
    file.write_text(POINTER)
    with pytest.raises(DataError, match=r"instances_train\.json: a Git LFS pointer") as error:
        load_dataset(tmp_path)
    assert "git lfs pull" in str(error.value)


def test_addresses_of_lvis_name_the_images(tmp_path: Path) -> None:
    image = {"id": 7, "coco_url": "http://images.cocodataset.org/train2017/a.jpg"}
    text_file(tmp_path / "lvis_v1_train.json", json.dumps(coco_table(images=[image])))
    image_file(tmp_path / "train2017/a.jpg", (40, 30))
    assert len(read_dataset(tmp_path).splits["train"][0].class_indices) == 2
