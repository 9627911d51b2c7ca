"""Recognising a data set's form, and the validation split of one that has none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import coco_table, image_file, text_file
from PIL import Image

from dino_core.data.load import load_dataset, require_split
from dino_core.data.records import ImageRecord
from dino_core.data.save import save_dataset
from dino_core.data.split import stratified_split
from dino_core.errors import ConfigError, DataError

VOC_TEXT = (
    "<annotation><filename>a.jpg</filename><object><name>dog</name><bndbox><xmin>1</xmin>"
    "<ymin>2</ymin><xmax>10</xmax><ymax>20</ymax></bndbox></object></annotation>"
)


def yolo_set(root: Path, count: int = 10) -> Path:
    for i in range(count):
        for folder in ("images", "labels"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(root / f"images/{i:03}.png")
        (root / f"labels/{i:03}.txt").write_text(f"{i % 2} 0.5 0.5 0.5 0.5")
    return root


def coco_file(root: Path) -> Path:
    Image.new("RGB", (16, 16)).save(root / "a.png")
    file = root / "train.json"
    table = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [],
        "categories": [{"id": 1, "name": "x"}],
    }
    file.write_text(json.dumps(table))
    return file


def record(image_id: int, classes: list[int]) -> ImageRecord:
    count = len(classes)
    return ImageRecord(
        image_id=image_id,
        path=Path(f"{image_id}.jpg"),
        width=10,
        height=10,
        boxes_xyxy_px=np.tile(np.array([[1, 1, 5, 5]], np.float32), (count, 1)),
        class_indices=np.array(classes, np.int64),
        is_crowd=np.zeros(count, np.bool_),
        areas=np.full(count, 16, np.float32),
    )


def test_forms_are_recognized(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    file = coco_file(tmp_path / "coco")
    assert load_dataset(file, val_split=0).format == "coco"
    assert load_dataset(str(tmp_path / "coco"), val_split=0).format == "coco"
    yolo = load_dataset(yolo_set(tmp_path / "yolo"))
    assert yolo.format == "yolo"
    save_dataset(yolo, tmp_path / "voc", "voc")
    save_dataset(yolo, tmp_path / "csv", "csv")
    assert load_dataset(tmp_path / "voc").format == "voc"
    assert load_dataset(tmp_path / "csv").format == "csv"
    assert load_dataset(tmp_path / "csv/annotations.csv").format == "csv"


@pytest.mark.parametrize(
    ("form", "labels", "text"),
    [
        ("coco", "{}/_annotations.coco.json", json.dumps(coco_table())),
        ("coco", "{}/labels.json", json.dumps(coco_table())),
        ("yolo", "{}/labels/a.txt", "0 0.5 0.5 0.5 0.5"),
        ("yolo", "{}/Labels/a.txt", "0 0.5 0.5 0.5 0.5"),
        ("yolo", "{}/Images/a.txt", "0 0.5 0.5 0.5 0.5"),
        ("voc", "{}/Annotations/a.xml", VOC_TEXT),
        ("csv", "{}/boxes.csv", "filename,class,xmin,ymin,xmax,ymax\na.jpg,dog,1,2,10,20\n"),
    ],
)
@pytest.mark.parametrize("names", [("Train", "VALID"), ("train_set", "Val Set"), ("train1", "dev")])
def test_split_folders_by_other_names(
    tmp_path: Path, names: tuple[str, str], form: str, labels: str, text: str
) -> None:
    images = "Images" if "Labels" in labels or "Images" in labels else "images"
    for split in names:
        for name in ("a.jpg", "b.jpg"):
            image_file(tmp_path / split / images / name, (40, 30))
        text_file(tmp_path / labels.format(split), text)
    index = load_dataset(tmp_path)
    assert index.format == form and list(index.splits) == ["train", "val"]
    found = [{r.path.parents[1].name for r in index.splits[split]} for split in ("train", "val")]
    assert found == [{name} for name in names]


@pytest.mark.parametrize("name", ["test-data", "my_test", "Train v2", "data_train_test"])
def test_a_lone_folder_that_only_mentions_a_split_is_the_set(tmp_path: Path, name: str) -> None:
    data = yolo_set(tmp_path / name)
    index = load_dataset(tmp_path)
    assert index.root == data and list(index.splits) == ["train", "val"]


def test_tables_and_xml_of_other_kinds_are_not_taken_for_labels(tmp_path: Path) -> None:
    yolo_set(tmp_path)
    (tmp_path / "results.csv").write_text("epoch,loss,precision,recall,map,lr\n1,2,3,4,5,6\n")
    (tmp_path / "classes.csv").write_text("cat,0\ndog,1\n")
    (tmp_path / "settings.xml").write_text("<settings/>")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/cvat.xml").write_text("<annotations><version>1.1</version>")
    (tmp_path / "dataset-metadata.json").write_text('{"title": "x", "licenses": [{"name": "y"}]}')
    assert load_dataset(tmp_path).format == "yolo"


def test_both_forms_in_one_folder(tmp_path: Path) -> None:
    yolo_set(tmp_path)
    coco_file(tmp_path)
    index = load_dataset(tmp_path, val_split=0)
    assert index.format == "coco"
    assert "coco and yolo; coco is read" in index.warnings[-1]
    assert load_dataset(tmp_path, format="yolo").format == "yolo"
    assert load_dataset(tmp_path, format="coco", val_split=0).format == "coco"


def test_labels_without_names_yield_to_those_with_names(tmp_path: Path) -> None:
    """As Darknet's voc_label.py leaves a set: its own labels beside those of VOC."""
    text_file(tmp_path / "Annotations/a.xml", VOC_TEXT)
    image_file(tmp_path / "JPEGImages/a.jpg")
    text_file(tmp_path / "labels/a.txt", "1 0.5 0.5 0.5 0.5")
    index = load_dataset(tmp_path, val_split=0)
    assert (index.format, index.classes.names) == ("voc", ("dog",))
    assert "yolo and voc; voc is read" in index.warnings[-1]
    text_file(tmp_path / "classes.txt", "cat\ndog\n")
    index = load_dataset(tmp_path, val_split=0)
    assert (index.format, index.classes.names) == ("yolo", ("cat", "dog"))


def test_a_lone_folder_is_entered(tmp_path: Path) -> None:
    data = yolo_set(tmp_path / "archive" / "My set.v1")
    (data / "classes.txt").write_text("a\nb\n")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / ".DS_Store").write_text("")
    index = load_dataset(tmp_path)
    assert index.root == data and index.classes.names == ("a", "b")
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="no data set recognized, found archive, other"):
        load_dataset(tmp_path)


def test_data_beside_other_things_are_found(tmp_path: Path) -> None:
    data = yolo_set(tmp_path / "data")
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("how these pictures came to be")
    assert load_dataset(tmp_path).root == data
    yolo_set(tmp_path / "more")
    with pytest.raises(DataError, match="holds several data sets, data and more") as caught:
        load_dataset(tmp_path)
    assert caught.value.hint == "give one of them"


def test_a_folder_that_names_two_splits_is_none(tmp_path: Path) -> None:
    for split in ("train", "test"):
        image_file(tmp_path / f"train_test_split/{split}/a.jpg", (40, 30))
        text_file(tmp_path / f"train_test_split/{split}/a.xml", VOC_TEXT)
    assert list(load_dataset(tmp_path, val_split=0).splits) == ["train", "test"]


def test_lists_beside_images_of_annotations_are_no_labels(tmp_path: Path) -> None:
    """As Oxford's pets have them: annotations/ holds lists, and xml in a folder of their own."""
    image_file(tmp_path / "images/a.jpg", (40, 30))
    text_file(tmp_path / "annotations/list.txt", "#Image CLASS-ID SPECIES BREED\na 1 1 1 1\n")
    text_file(tmp_path / "annotations/xmls/a.xml", VOC_TEXT)
    index = load_dataset(tmp_path, val_split=0)
    assert index.format == "voc" and index.warnings == ()


def test_the_error_lists_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(DataError, match=r"no data set recognized, found notes\.md") as caught:
        load_dataset(tmp_path)
    for layout in ("instances_{train,val}.json", "data.yaml", "Annotations/*.xml", "xmin,ymin"):
        assert layout in caught.value.hint
    with pytest.raises(DataError, match="not a data set"):
        load_dataset(tmp_path / "notes.md")
    with pytest.raises(DataError, match="no such file or folder"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="unknown data format 'yollo'") as config_error:
        load_dataset(tmp_path, format="yollo")
    assert "'yolo'" in config_error.value.hint
    with pytest.raises(ConfigError, match="val_split is 1"):
        load_dataset(tmp_path, val_split=1)


def test_split_is_made_told_and_repeated(tmp_path: Path) -> None:
    yolo_set(tmp_path)
    index = load_dataset(tmp_path, val_split=0.2, seed=3)
    assert [len(index.splits[s]) for s in ("train", "val")] == [8, 2]
    assert "2 of 10 images were set apart (share 0.2, seed 3)" in index.warnings[-1]
    again = load_dataset(tmp_path, val_split=0.2, seed=3)
    ids = [[r.image_id for r in i.splits["val"]] for i in (index, again)]
    assert ids[0] == ids[1]
    assert list(load_dataset(tmp_path, val_split=0).splits) == ["train"]
    different = {
        tuple(r.image_id for r in load_dataset(tmp_path, val_split=0.2, seed=s).splits["val"])
        for s in range(8)
    }
    assert len(different) > 1


def test_split_gives_each_class_its_share() -> None:
    # 100 images: class 0 in all, class 1 in 20, class 2 in 5, class 3 in 1
    records = [
        record(i, [0] + [1] * (i < 20) + [2] * (20 <= i < 25) + [3] * (i == 30)) for i in range(100)
    ]
    train, val = stratified_split(records, 0.2, 4, seed=0)
    assert len(val) == 20 and len(train) == 80
    assert sorted(r.image_id for r in (*train, *val)) == list(range(100))
    counts = np.bincount(np.concatenate([r.class_indices for r in val]), minlength=4)
    assert counts.tolist() == [20, 4, 1, 0]  # a fifth of each; a single image stays in train
    assert [r.image_id for r in val] == sorted(r.image_id for r in val)


def test_split_of_very_few() -> None:
    train, val = stratified_split([record(0, []), record(1, [0])], 0.1, 1, seed=0)
    assert len(train) == len(val) == 1
    with pytest.raises(DataError, match="1 images cannot be divided"):
        stratified_split([record(0, [0])], 0.1, 1, seed=0)


def test_split_of_images_without_boxes() -> None:
    train, val = stratified_split([record(i, []) for i in range(10)], 0.3, 1, seed=1)
    assert (len(train), len(val)) == (7, 3)


def test_a_negative_seed_splits_too() -> None:
    records = [record(i, [0]) for i in range(10)]
    assert stratified_split(records, 0.3, 1, seed=-1) == stratified_split(records, 0.3, 1, seed=-1)
    assert len(stratified_split(records, 0.3, 1, seed=-1)[1]) == 3


def test_a_named_validation_split_that_is_lost_is_not_replaced(tmp_path: Path) -> None:
    """Else scores on training images would pass for those of the split that is meant."""
    for split, names in (("train", "abcdefgh"), ("val", "x")):
        for name in names:
            image_file(tmp_path / f"images/{split}/{name}.jpg")
            text_file(tmp_path / f"labels/{split}/{name}.txt", "0 0.5 0.5 0.2 0.2\n")
    text_file(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [cat]\n")
    (tmp_path / "images/val/x.jpg").write_bytes(b"")
    index = load_dataset(tmp_path)
    assert (set(index.splits), index.lost_splits) == ({"train"}, {"val"})
    with pytest.raises(DataError, match=r"no images in split 'val': .*images/val/x\.jpg"):
        require_split(index, "val")
