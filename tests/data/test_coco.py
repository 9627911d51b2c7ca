"""COCO json: hand-worked files, every kind of mistake, and pycocotools as another reader."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dino_core.data.check.run import quick_findings
from dino_core.data.formats.coco import read_coco, write_coco
from dino_core.data.load import load_dataset
from dino_core.errors import DataError

GENERAL = Path(__file__).parents[2] / "../shared/data/general"


def image_file(path: Path, size: tuple[int, int] = (40, 30), orientation: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", size, (90, 120, 30)).save(path, exif=exif)
    return path


def coco_table(**changes: Any) -> dict[str, Any]:
    """Two images of 40x30, ids with gaps, one crowd, one image without boxes."""
    table: dict[str, Any] = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.jpg", "width": 40, "height": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1.5, 2, 10, 20], "area": 120.0},
            {"id": 2, "image_id": 7, "category_id": 4, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
    }
    return {**table, **changes}


def write_set(root: Path, table: Any, split: str = "train") -> Path:
    for name in ("a.jpg", "b.jpg"):
        image_file(root / "images" / split / name)
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(table if isinstance(table, str) else json.dumps(table), encoding="utf-8")
    return file


def annotation(**changes: Any) -> dict[str, Any]:
    return {"id": 5, "image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4], **changes}


def test_hand_worked_file(tmp_path: Path) -> None:
    write_set(tmp_path, coco_table())
    index = read_coco(tmp_path)
    assert index.format == "coco" and index.root == tmp_path and index.warnings == ()
    assert index.classes.names == ("cat", "dog") and index.classes.source_ids == (4, 9)
    first, second = index.splits["train"]
    assert (first.image_id, first.width, first.height) == (7, 40, 30)
    assert first.path == tmp_path / "images/train/a.jpg"
    assert first.boxes_xyxy_px.tolist() == [[1.5, 2, 11.5, 22], [0, 0, 40, 30]]
    assert first.boxes_xyxy_px.dtype == np.float32 and first.class_indices.dtype == np.int64
    assert first.class_indices.tolist() == [1, 0]
    assert first.is_crowd.tolist() == [False, True]
    assert first.areas.tolist() == [120.0, 1200.0]  # as stated; else width times height
    assert second.image_id == 3 and second.boxes_xyxy_px.shape == (0, 4)


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
        ("labels.json", ".", "train"),
        ("labels.json", "data", "train"),
    ],
)
def test_layouts(tmp_path: Path, json_name: str, image_dir: str, split: str) -> None:
    for name in ("a.jpg", "b.jpg"):
        image_file(tmp_path / image_dir / name)
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
            image_file(tmp_path / folder / image_dir / name)
        file = tmp_path / folder / json_name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(coco_table()))
    index = read_coco(tmp_path)
    assert list(index.splits) == ["train", "val"]
    assert [r.path.relative_to(tmp_path).parts[0] for r in index.splits["val"]] == ["valid"] * 2


def test_file_names_with_folders_and_backslashes(tmp_path: Path) -> None:
    table = coco_table()
    table["images"][0]["file_name"] = "images\\train\\a.jpg"
    table["images"][1]["file_name"] = "train/b.jpg"
    write_set(tmp_path, table)
    assert len(read_coco(tmp_path).splits["train"]) == 2


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
    write_set(tmp_path, table)
    record = read_coco(tmp_path).splits["train"][0]
    assert record.path == tmp_path / "images/train/a.jpg"


def test_images_in_unusual_folders_are_found_by_name(tmp_path: Path) -> None:
    write_set(tmp_path, coco_table())
    deep = tmp_path / "shots/2020/may"
    deep.parent.mkdir(parents=True)
    (tmp_path / "images/train").rename(deep)
    assert [r.path for r in read_coco(tmp_path).splits["train"]] == [deep / "a.jpg", deep / "b.jpg"]
    (tmp_path / "shots/2021").mkdir()
    (deep / "a.jpg").rename(tmp_path / "shots/2021/b.jpg")  # two of that name: which is meant?
    with pytest.raises(DataError, match="none of its 2 images was found"):
        read_coco(tmp_path)


def test_a_file_whose_name_tells_no_split_is_train(tmp_path: Path) -> None:
    file = write_set(tmp_path, coco_table(), "val")
    (tmp_path / "images/val").rename(tmp_path / "images/all")
    for name in ("all.json", "dataset-metadata.json"):
        (file.parent / name).write_text(json.dumps(coco_table()))
    file.rename(file.parent / "val.json")
    (file.parent / "dataset-metadata.json").write_text('{"title": "pets", "licenses": [{}]}')
    assert list(read_coco(tmp_path).splits) == ["train", "val"]


def test_a_test_file_needs_no_annotations(tmp_path: Path) -> None:
    for split in ("train", "test"):
        table = coco_table()
        if split == "test":
            del table["annotations"]
        write_set(tmp_path, table, split)
    index = read_coco(tmp_path)
    assert [len(record.boxes_xyxy_px) for record in index.splits["test"]] == [0, 0]


def test_annotations_without_image_and_with_the_same_id(tmp_path: Path) -> None:
    entries = [annotation(), annotation(bbox=[1, 2, 3, 4]), annotation(id=6, image_id=8)]
    write_set(tmp_path, coco_table(annotations=entries))
    index = read_coco(tmp_path)
    assert [len(record.boxes_xyxy_px) for record in index.splits["train"]] == [2, 0]
    same_id, orphan = index.warnings
    assert same_id.startswith("1 annotation has an id that another one has")
    assert "annotations[1] (id 5)" in same_id
    assert orphan.startswith("1 annotation belongs to no image of its file and was left out")
    assert "annotations[2] (id 6): image_id 8" in orphan
    kinds = {finding.kind: finding.count for finding in quick_findings(index)}
    assert kinds["duplicate-annotation-id"] == kinds["label-without-image"] == 1


def test_two_files_of_one_split_are_ambiguous(tmp_path: Path) -> None:
    for year in ("2014", "2017"):
        write_set(tmp_path, coco_table(), f"train{year}")
    with pytest.raises(DataError, match=r"instances_train2014\.json and instances_train2017\.json"):
        read_coco(tmp_path)


def test_other_json_beside_the_instances_is_ignored(tmp_path: Path) -> None:
    file = write_set(tmp_path, coco_table())
    (file.parent / "captions_train.json").write_text("{}")
    (file.parent / "coco80_val.json").write_text("{}")
    assert list(read_coco(tmp_path).splits) == ["train"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("{", r"instances_train\.json line 1: not valid JSON"),
        ("[]", "found a list"),
        ({"images": [], "categories": []}, "key 'annotations' is missing, found images"),
        (coco_table(images={}), "'images' is a dict, expected a list"),
        (coco_table(images=[3]), r"images\[0\] is 3, expected an object"),
        (coco_table(categories=[]), "'categories' is empty"),
        (coco_table(categories=[{"id": 4}]), r"categories\[0\]: the key 'name' is missing"),
        (
            coco_table(categories=[{"id": 4, "name": "a"}, {"id": 4, "name": "b"}]),
            r"categories\[1\]: the category id 4 is used twice",
        ),
        (
            coco_table(categories=[{"id": 9, "name": "a"}, {"id": 4, "name": "a"}]),
            "class names are not unique: a",
        ),
        (coco_table(images=[{"id": 7}]), r"images\[0\]: the key 'file_name' is missing"),
        (coco_table(images=[{"file_name": "a.jpg"}]), r"images\[0\]: the key 'id' is missing"),
        (
            coco_table(images=[{"id": "x", "file_name": "a.jpg"}]),
            r"images\[0\]: id is 'x', expected an integer",
        ),
        (
            coco_table(images=[{"id": 7, "file_name": "a.jpg"}] * 2),
            r"images\[1\]: the image id 7 is used twice",
        ),
        (
            coco_table(images=[{"id": 7, "file_name": "a.jpg", "width": 0, "height": 5}]),
            "size 0x5, expected at least one pixel",
        ),
        (
            coco_table(annotations=[annotation(category_id=5)]),
            r"annotations\[0\] \(id 5\): category_id 5 is not among the categories",
        ),
        (coco_table(annotations=[annotation(image_id=8)]), "image_id 8 is not among the images"),
        (coco_table(annotations=[{"id": 1, "image_id": 7}]), "key 'category_id' is missing"),
        (
            coco_table(annotations=[{"image_id": 7, "category_id": 9}]),
            r"annotations\[0\]: the key 'bbox' is missing",
        ),
        (coco_table(annotations=[annotation(bbox=[1, 2, 3])]), "expected four numbers"),
        (coco_table(annotations=[annotation(bbox=[1, 2, 3, "4"])]), "expected four numbers"),
        (coco_table(annotations=[annotation(bbox=None)]), "bbox is None"),
        (coco_table(annotations=[annotation(bbox=[1, 2, float("nan"), 4])]), "must be finite"),
        (coco_table(annotations=[annotation(bbox=[1, 2, float("inf"), 4])]), "must be finite"),
        (coco_table(annotations=[annotation(area="big")]), "area is 'big'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, table: Any, message: str) -> None:
    write_set(tmp_path, table)
    with pytest.raises(DataError, match=message) as caught:
        read_coco(tmp_path)
    assert "instances_train.json" in caught.value.message


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no COCO annotations found"):
        read_coco(tmp_path)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    write_set(tmp_path, coco_table()).write_bytes(b'{"images": "\xff"}')
    with pytest.raises(DataError, match="not valid JSON"):
        read_coco(tmp_path)


def test_categories_must_agree_between_splits(tmp_path: Path) -> None:
    write_set(tmp_path, coco_table())
    other = coco_table(categories=[{"id": 9, "name": "cow"}, {"id": 4, "name": "cat"}])
    write_set(tmp_path, other, "val")
    with pytest.raises(DataError, match="category 9 is 'cow' here and 'dog' in"):
        read_coco(tmp_path)


def test_boxes_outside_are_clipped_and_empty_ones_left_out(tmp_path: Path) -> None:
    boxes = [[-5, 10, 20, 50], [50, 5, 10, 10], [3, 3, 0, 5], [3, 3, -2, 5], [1, 1, 39.005, 29]]
    table = coco_table(annotations=[annotation(id=i, bbox=box) for i, box in enumerate(boxes)])
    write_set(tmp_path, table)
    index = read_coco(tmp_path)
    record = index.splits["train"][0]
    # rounding (the last, 0.005 px too far) is left as it is
    np.testing.assert_allclose(
        record.boxes_xyxy_px, [[0, 10, 15, 30], [1, 1, 40.005, 30]], atol=1e-5
    )
    clipped, dropped = index.warnings
    assert clipped.startswith("1 box reaches outside its image and was clipped (")
    assert "annotations[0] (id 0): corners -5, 10, 15, 60 in an image of 40x30" in clipped
    assert dropped.startswith("3 boxes have no area inside their images and were left out (first: ")


def test_missing_and_broken_images_are_left_out(tmp_path: Path) -> None:
    table = coco_table()
    table["images"] += [
        {"id": 20, "file_name": "gone.jpg"},
        {"id": 21, "file_name": "gone too.jpg"},
        {"id": 22, "file_name": "text.jpg"},
        {"id": 23, "file_name": "empty.jpg"},
        {"id": 24, "file_name": "tall.jpg", "width": 40, "height": 30},
    ]
    write_set(tmp_path, table)
    folder = tmp_path / "images/train"
    (folder / "text.jpg").write_text("hello")
    (folder / "empty.jpg").write_bytes(b"")
    image_file(folder / "tall.jpg", (30, 40))
    index = read_coco(tmp_path)
    assert [r.image_id for r in index.splits["train"]] == [7, 3]
    missing, broken, shape = index.warnings
    assert missing.startswith("2 image files are missing and were left out (first: ")
    assert "gone.jpg" in missing
    assert broken.startswith("2 files are not readable images") and "text.jpg" in broken
    assert "40x30 stated" in shape and "tall.jpg is 30x40 upright" in shape


def test_all_images_missing_is_an_error(tmp_path: Path) -> None:
    table = coco_table(images=[{"id": 7, "file_name": "x.jpg"}])
    write_set(tmp_path, table)
    with pytest.raises(DataError, match=r"none of its 1 images was found, e\.g\. x\.jpg") as caught:
        read_coco(tmp_path)
    assert str(tmp_path / "images" / "train") in caught.value.hint


def test_sizes_come_from_the_upright_file(tmp_path: Path) -> None:
    table = coco_table(
        images=[{"id": 7, "file_name": "turned.jpg"}, {"id": 3, "file_name": "half.jpg",
                 "width": 80, "height": 60}],
        annotations=[annotation(id=1, image_id=3, bbox=[20, 10, 40, 20], area=700.0)],
    )  # fmt: skip
    write_set(tmp_path, table)
    image_file(tmp_path / "images/train/turned.jpg", (40, 30), orientation=6)
    image_file(tmp_path / "images/train/half.jpg", (40, 30))
    index = read_coco(tmp_path)
    turned, half = index.splits["train"]
    assert (turned.width, turned.height) == (30, 40)
    assert half.boxes_xyxy_px.tolist() == [[10, 5, 30, 15]] and half.areas.tolist() == [175.0]
    assert "80x60 stated" in index.warnings[0]


def test_roboflow_parent_category_is_left_out(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 4, "name": "cat", "supercategory": "pets"},
        {"id": 9, "name": "dog", "supercategory": "pets"},
    ]
    write_set(tmp_path, coco_table(categories=categories))
    index = read_coco(tmp_path)
    assert index.classes.names == ("cat", "dog")
    assert "category 0 'pets'" in index.warnings[0]


def test_roboflow_parent_of_the_class_name_itself(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "dog", "supercategory": "none"},
        {"id": 9, "name": "dog", "supercategory": "dog"},
        {"id": 4, "name": "cat", "supercategory": "dog"},
    ]
    write_set(tmp_path, coco_table(categories=categories))
    assert read_coco(tmp_path).classes.names == ("cat", "dog")


def test_unread_parts_are_told(tmp_path: Path) -> None:
    table = coco_table(annotations=[annotation(segmentation=[[1, 2, 3, 4, 5, 6]]),
                                    annotation(id=6, segmentation=[])])  # fmt: skip
    write_set(tmp_path, table)
    index = read_coco(tmp_path)
    assert index.unread == ("1 annotations have a 'segmentation', which is not kept",)
    assert index.to_coco(tmp_path / "out") == list(index.unread)


def test_written_set_reads_back_the_same(tmp_path: Path) -> None:
    write_set(tmp_path / "in", coco_table())
    write_set(tmp_path / "in", coco_table(), "val")
    before = read_coco(tmp_path / "in")
    assert write_coco(before, tmp_path / "out") == []
    after = read_coco(tmp_path / "out")
    assert after.classes == before.classes and after.warnings == ()
    for split in ("train", "val"):
        for old, new in zip(before.splits[split], after.splits[split], strict=True):
            assert (new.image_id, new.path.name) == (old.image_id, old.path.name)
            assert new.path.read_bytes() == old.path.read_bytes()
            np.testing.assert_array_equal(new.boxes_xyxy_px, old.boxes_xyxy_px)
            np.testing.assert_array_equal(new.is_crowd, old.is_crowd)
            np.testing.assert_array_equal(new.areas, old.areas)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    write_set(tmp_path / "in", coco_table())
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="out: cannot be written"):
        write_coco(read_coco(tmp_path / "in"), tmp_path / "out")


@pytest.mark.skipif(not GENERAL.is_dir(), reason="the shared data set is not here")
def test_agrees_with_pycocotools() -> None:
    from pycocotools.coco import COCO

    file = GENERAL / "annotations/instances_val.json"
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(file))
    index = read_coco(file)
    records = index.splits["val"]
    assert [r.image_id for r in records] == list(theirs.imgs)
    assert dict(zip(index.classes.source_ids, index.classes.names, strict=True)) == {
        c["id"]: c["name"] for c in theirs.cats.values()
    }
    for record in records:
        rows = theirs.loadAnns(theirs.getAnnIds(imgIds=[record.image_id]))
        ours = record.boxes_xyxy_px.copy()
        ours[:, 2:] -= ours[:, :2]
        expected = np.array([a["bbox"] for a in rows]).reshape(-1, 4)
        np.testing.assert_allclose(ours, expected, atol=1e-4)  # float32 at a few hundred pixels
        ids = [index.classes.source_ids[i] for i in record.class_indices]
        assert ids == [a["category_id"] for a in rows]
        assert record.is_crowd.tolist() == [bool(a["iscrowd"]) for a in rows]
        np.testing.assert_allclose(record.areas, [a["area"] for a in rows], rtol=1e-6)
