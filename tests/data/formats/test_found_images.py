"""Images that labels name by a path which leads elsewhere: outside, or to one file for several."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import image_file, text_file, yolo_set

from dino_core.data.load import read_dataset


def coco(folder: Path, *names: str) -> Path:
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 3, 4]}
        for i in range(1, len(names) + 1)
    ]
    table = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names, start=1)],
        "annotations": boxes,
        "categories": [{"id": 1, "name": "cat"}],
    }
    return text_file(folder / "annotations/instances_train.json", json.dumps(table))


def kinds(folder: Path) -> list[str]:
    return [fault.kind for fault in read_dataset(folder).faults]


@pytest.mark.parametrize("is_absolute", [False, True])
def test_images_outside_are_noted(tmp_path: Path, is_absolute: bool) -> None:
    outside = image_file(tmp_path / "cat.jpg")
    data = tmp_path / "data"
    image_file(data / "images/a.jpg")
    coco(data, str(outside) if is_absolute else "../../cat.jpg", "a.jpg")
    index = read_dataset(data)
    assert len(index.splits["train"]) == 2
    (fault,) = index.faults
    assert fault.kind == "image-outside" and "images[0]" in fault.place


def test_absolute_names_inside_are_not_noted(tmp_path: Path, monkeypatch: object) -> None:
    path = image_file(tmp_path / "images/a.jpg")
    coco(tmp_path, str(path), f"{tmp_path}/images/../images/a.jpg")
    assert "image-outside" not in kinds(tmp_path)


@pytest.mark.parametrize("place", ["path: /\ntrain: {}", "train: {}", "path: ../more\ntrain: ."])
def test_yolo_images_outside_are_noted(tmp_path: Path, place: str) -> None:
    more = tmp_path / "more"
    image_file(more / "a.jpg")
    text_file(more / "a.txt", "0 0.5 0.5 0.2 0.2\n")
    data = tmp_path / "data"
    text_file(data / "data.yaml", place.format(more) + "\nnames: [cat]\n")
    index = read_dataset(data)
    assert len(index.splits["train"]) == 1
    assert [fault.kind for fault in index.faults] == ["image-outside"]


def test_yolo_images_inside_are_not_noted(tmp_path: Path) -> None:
    assert "image-outside" not in kinds(yolo_set(tmp_path))


def test_one_file_for_two_names_is_neither(tmp_path: Path) -> None:
    image_file(tmp_path / "images/1.jpg")
    image_file(tmp_path / "images/2.jpg")
    coco(tmp_path, "a/1.jpg", "b/1.jpg", "c/2.jpg")
    index = read_dataset(tmp_path)
    assert [record.path.name for record in index.splits["train"]] == ["2.jpg"]
    ambiguous = [f.place for f in index.faults if f.kind == "ambiguous-image"]
    assert len(ambiguous) == 2 and "may be a/1.jpg or b/1.jpg" in ambiguous[0]


def test_the_name_that_fits_in_full_keeps_its_file(tmp_path: Path) -> None:
    image_file(tmp_path / "images/a/1.jpg")
    coco(tmp_path, "a/1.jpg", "images/b/a/1.jpg")
    assert [r.image_id for r in read_dataset(tmp_path).splits["train"]] == [1]


def test_the_whole_file_system_is_no_folder_of_images(tmp_path: Path) -> None:
    yolo_set(tmp_path, yaml="train: /\nval: images/val\nnames: [cat, dog]\n")
    index = read_dataset(tmp_path)
    assert list(index.splits) == ["val"]
    assert "which is the whole file system" in index.faults[0].place
