"""Where YOLO data sets keep images, labels, lists and class names: every known layout."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import image_file, text_file, yolo_set

from dino_core.data.load import load_dataset, read_dataset
from dino_core.errors import DataError


def test_bare_folders_with_class_names(tmp_path: Path) -> None:
    yolo_set(tmp_path, yaml=None)
    text_file(tmp_path / "classes.txt", "cat\ndog\n")
    assert read_dataset(tmp_path, "yolo").classes.names == ("cat", "dog")


def test_images_and_labels_in_one_folder(tmp_path: Path) -> None:
    image_file(tmp_path / "a.jpg")
    image_file(tmp_path / "b.jpg")
    text_file(tmp_path / "a.txt", "1 0.5 0.5 0.25 0.5\n")
    text_file(tmp_path / "classes.txt", "cat\ndog\n")
    index = read_dataset(tmp_path, "yolo")
    assert index.classes.names == ("cat", "dog") and index.warnings == ()
    assert [r.class_indices.tolist() for r in index.splits["train"]] == [[1], []]


def test_flat_bare_folders_are_one_split(tmp_path: Path) -> None:
    image_file(tmp_path / "images/a.jpg")
    text_file(tmp_path / "labels/a.txt", "2 0.5 0.5 0.5 0.5")
    index = read_dataset(tmp_path, "yolo")
    assert list(index.splits) == ["train"] and len(index.classes) == 3


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/val/a.jpg", "labels/val/a.txt"),
        ("val/images/a.jpg", "val/labels/a.txt"),
        ("Images/val/a.jpg", "Labels/val/a.txt"),
        ("val_images/a.jpg", "val_labels/a.txt"),
        ("val/a.jpg", "val/a.txt"),
        ("Images/a.jpg", "Labels/a.txt"),
        ("Images/a.jpg", "labels/a.txt"),
        ("images/val2017/a.jpg", "labels/val2017/a.txt"),
        ("images_val/a.jpg", "labels_val/a.txt"),
        ("imgs/a.jpg", "labels/a.txt"),
        ("JPEGImages/a.jpg", "labels/a.txt"),
        ("JPEGImages/val/a.jpg", "labels/val/a.txt"),
        ("images/a.jpg", "annotations/a.txt"),
        ("val/images/a.jpg", "val/annotations/a.txt"),
    ],
)
def test_bare_layouts(tmp_path: Path, image: str, label: str) -> None:
    image_file(tmp_path / image)
    text_file(tmp_path / label, "0 0.5 0.5 0.5 0.5\n")
    index = load_dataset(tmp_path, val_split=0)
    (split,) = index.splits
    assert index.format == "yolo" and split == ("val" if "val" in image.lower() else "train")
    assert [len(record.class_indices) for record in index.splits[split]] == [1]


@pytest.mark.parametrize("names", ["train/_darknet.labels", "classes.txt", None])
def test_a_folder_for_each_split_with_labels_beside(tmp_path: Path, names: str | None) -> None:
    for split in ("train", "valid"):
        image_file(tmp_path / split / "a.jpg")
        text_file(tmp_path / split / "a.txt", "1 0.5 0.5 0.25 0.5\n")
    if names:
        text_file(tmp_path / names, "cat\ndog\n")
    index = load_dataset(tmp_path)
    assert {split: len(r) for split, r in index.splits.items()} == {"train": 1, "val": 1}
    assert index.classes.names == (("cat", "dog") if names else ("class_0", "class_1"))


def test_one_folder_without_class_names(tmp_path: Path) -> None:
    image_file(tmp_path / "a.jpg")
    text_file(tmp_path / "a.txt", "a caption of five words\n")
    with pytest.raises(DataError, match="no data set recognized"):
        load_dataset(tmp_path)
    text_file(tmp_path / "a.txt", "0 0.5 0.5 0.25 0.5\n")
    assert len(load_dataset(tmp_path, val_split=0).splits["train"]) == 1


def test_lists_of_bare_folders(tmp_path: Path) -> None:
    """As CVAT exports the Darknet format: its lists name a folder that is not there."""
    for stem in ("a", "b", "c"):
        image_file(tmp_path / f"obj_train_data/{stem}.jpg")
        text_file(tmp_path / f"obj_train_data/{stem}.txt", "0 0.5 0.5 0.25 0.5\n")
    text_file(tmp_path / "obj.names", "cat\n")
    text_file(tmp_path / "train.txt", "data/obj_train_data/a.jpg\ndata/obj_train_data/c.jpg\n")
    text_file(tmp_path / "valid.txt", "data/obj_train_data/b.jpg\n")
    index = load_dataset(tmp_path)
    names = {split: [r.path.name for r in records] for split, records in index.splits.items()}
    assert names == {"train": ["a.jpg", "c.jpg"], "val": ["b.jpg"]} and index.warnings == ()


@pytest.mark.parametrize("images", ["JPEGImages", "images"])
def test_lists_of_voc(tmp_path: Path, images: str) -> None:
    """A set of Pascal VOC whose annotations became labels: its lists name images without suffix."""
    for stem in ("a", "b", "c.1"):
        image_file(tmp_path / f"{images}/{stem}.jpg")
        text_file(tmp_path / f"labels/{stem}.txt", "0 0.5 0.5 0.25 0.5\n")
    text_file(tmp_path / "ImageSets/Main/train.txt", "b\nc.1\n")
    text_file(tmp_path / "ImageSets/Main/val.txt", "a\n")
    index = load_dataset(tmp_path)
    names = {split: [r.path.name for r in records] for split, records in index.splits.items()}
    assert names == {"train": ["b.jpg", "c.1.jpg"], "val": ["a.jpg"]}


def test_lists_for_training_go_before_others(tmp_path: Path) -> None:
    for stem in ("a", "b"):
        image_file(tmp_path / f"images/{stem}.jpg")
        text_file(tmp_path / f"labels/{stem}.txt", "0 0.5 0.5 0.25 0.5\n")
    text_file(tmp_path / "ImageSets/Main/test.txt", "b\n")
    text_file(tmp_path / "train.txt", "images/a.jpg\n")
    index = load_dataset(tmp_path, val_split=0)
    assert [record.path.name for record in index.splits["train"]] == ["a.jpg"]


def test_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    yolo_set(tmp_path)
    image_file(tmp_path / "images/train/.ipynb_checkpoints/a-checkpoint.jpg")
    assert len(read_dataset(tmp_path, "yolo").splits["train"]) == 1


def test_lists_of_images_and_labels_beside_them(tmp_path: Path) -> None:
    image_file(tmp_path / "photos/a.jpg")
    image_file(tmp_path / "photos/b.jpg")
    text_file(tmp_path / "photos/a.txt", "0 0.5 0.5 0.5 0.5")
    text_file(tmp_path / "photos/b.txt", "")
    text_file(tmp_path / "train.txt", "./photos/a.jpg\n\nphotos/b.jpg\nphotos/gone.jpg\n")
    text_file(tmp_path / "data.yaml", "train: train.txt\nnames: [x]")
    index = read_dataset(tmp_path, "yolo")
    assert [len(r.class_indices) for r in index.splits["train"]] == [1, 0]
    (fault,) = index.faults
    gone = tmp_path / "photos/gone.jpg"
    assert (fault.kind, fault.paths) == ("missing-image", (gone,)) and str(gone) in fault.place


def test_several_folders_for_one_split(tmp_path: Path) -> None:
    yolo_set(tmp_path, yaml="train: [images/train, images/val]\nnames: [a, b]")
    assert len(read_dataset(tmp_path, "yolo").splits["train"]) == 2


def test_labels_in_the_images_folder_of_a_split(tmp_path: Path) -> None:
    """data.yaml may name the folder that holds images/ and labels/ of a split."""
    image_file(tmp_path / "train/images/a.jpg")
    text_file(tmp_path / "train/labels/a.txt", "0 0.5 0.5 0.5 0.5")
    image_file(tmp_path / "train/previews/a.jpg")
    text_file(tmp_path / "data.yaml", "train: train\nnames: [x]")
    paths = [record.path for record in read_dataset(tmp_path, "yolo").splits["train"]]
    assert paths == [tmp_path / "train/images/a.jpg"]
    other = image_file(tmp_path / "train/b.jpg")
    paths = [record.path for record in read_dataset(tmp_path, "yolo").splits["train"]]
    assert other in paths and len(paths) == 3
