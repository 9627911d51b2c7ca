"""COCO json: hand-worked files, every kind of mistake, and pycocotools as another reader."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import coco_set, coco_table, image_file

from dino_core.data.check.run import quick_findings
from dino_core.data.formats.coco import write_coco
from dino_core.data.load import load_dataset, read_dataset
from dino_core.data.save import save_dataset
from dino_core.errors import DataError

GENERAL = Path(__file__).parents[3] / "../shared/data/general"


def annotation(**changes: Any) -> dict[str, Any]:
    return {"id": 5, "image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4], **changes}


def test_hand_worked_file(tmp_path: Path) -> None:
    coco_set(tmp_path, coco_table())
    index = read_dataset(tmp_path, "coco")
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


def test_image_ids_may_be_words(tmp_path: Path) -> None:
    table = coco_table(annotations=[annotation(), annotation(id=6, image_id="gone")])
    for entry in (*table["images"], table["annotations"][0]):
        key = "image_id" if "image_id" in entry else "id"
        entry[key] = f"img-{entry[key]}"
    coco_set(tmp_path, table)
    index = read_dataset(tmp_path, "coco")
    records = index.splits["train"]
    assert [(r.image_id, r.path.name, len(r.boxes_xyxy_px)) for r in records] == [
        (1, "a.jpg", 1),
        (2, "b.jpg", 0),
    ]
    words, orphan = index.faults
    assert (words.kind, orphan.kind) == ("ids-are-words", "label-without-image")
    assert "image_id 'gone' is not among the images" in orphan.place


def test_boxes_as_text_and_from_outlines(tmp_path: Path) -> None:
    outlines = [[3, 4, 9, 4, 9, 8.5], [5, 2, 6, 2, 6, 3]]
    entries = [
        annotation(bbox=["1.5", "2", "3", "4"]),
        annotation(id=6, bbox=[], segmentation=outlines),
        annotation(id=7, bbox=None, segmentation=outlines),
    ]
    coco_set(tmp_path, coco_table(annotations=entries))
    boxes = read_dataset(tmp_path, "coco").splits["train"][0].boxes_xyxy_px
    assert boxes.tolist() == [[1.5, 2, 4.5, 6], [3, 2, 9, 8.5], [3, 2, 9, 8.5]]


@pytest.mark.parametrize(
    "name", ["a.JPG", "a.png", "a", " a.jpg", "https://x.org/train/a.jpg?token=1", "%61.jpg"]
)
def test_image_names_spelled_otherwise(tmp_path: Path, name: str) -> None:
    table = coco_table()
    table["images"][0]["file_name"] = name
    coco_set(tmp_path, table)
    assert [r.path.name for r in read_dataset(tmp_path, "coco").splits["train"]] == [
        "a.jpg",
        "b.jpg",
    ]
    table["images"].pop()
    coco_set(tmp_path, table)
    (tmp_path / "images/train").rename(tmp_path / "elsewhere")
    assert [r.path.name for r in read_dataset(tmp_path, "coco").splits["train"]] == ["a.jpg"]


def test_annotations_without_image_and_with_the_same_id(tmp_path: Path) -> None:
    entries = [annotation(), annotation(bbox=[1, 2, 3, 4]), annotation(id=6, image_id=8)]
    coco_set(tmp_path, coco_table(annotations=entries))
    index = read_dataset(tmp_path, "coco")
    assert [len(record.boxes_xyxy_px) for record in index.splits["train"]] == [2, 0]
    orphan, same_id = index.warnings
    assert orphan.startswith("1 label belongs to no image and is left out (")
    assert same_id.startswith("1 annotation has an id that another one has")
    assert "annotations[1] (id 5)" in same_id
    assert "annotations[2] (id 6): image_id 8" in orphan
    kinds = {finding.kind: finding.count for finding in quick_findings(index)}
    assert kinds["duplicate-annotation-id"] == kinds["label-without-image"] == 1


@pytest.mark.parametrize(
    ("table", "kind", "message"),
    [
        ("{", "malformed-file", r"instances_train\.json line 1: not valid JSON"),
        ("[]", "malformed-file", "found a list"),
        (
            {"images": [], "categories": []},
            "malformed-file",
            "key 'annotations' is missing, found images",
        ),
        (coco_table(images={}), "malformed-file", "'images' is a dict, expected a list"),
        (coco_table(images=[3]), "malformed-image-entry", r"images\[0\] is 3, expected an object"),
        (coco_table(categories=[]), "malformed-class", "'categories' is empty"),
        (
            coco_table(categories=[{"id": 4}]),
            "malformed-class",
            r"categories\[0\]: the key 'name' is missing",
        ),
        (
            coco_table(categories=[{"id": 4, "name": "a"}, {"id": 4, "name": "b"}]),
            "malformed-class",
            r"categories\[1\]: the id 4 is that of categories\[0\] too",
        ),
        (
            coco_table(images=[{"id": 7}]),
            "malformed-image-entry",
            r"images\[0\]: the key 'file_name' is missing",
        ),
        (
            coco_table(images=[{"file_name": "a.jpg"}]),
            "malformed-image-entry",
            r"images\[0\]: the key 'id' is missing",
        ),
        (
            coco_table(images=[{"id": 1.5, "file_name": "a.jpg"}]),
            "malformed-image-entry",
            r"images\[0\]: id is 1.5, expected an integer",
        ),
        (
            coco_table(images=[{"id": 7, "file_name": "a.jpg"}] * 2),
            "duplicate-id",
            r"images\[1\]: the image id 7 is that of .*images\[0\] too",
        ),
        (
            coco_table(images=[{"id": 7, "file_name": "a.jpg", "width": 0, "height": 5}]),
            "malformed-size",
            "size 0x5, expected at least one pixel",
        ),
        (
            coco_table(annotations=[annotation(category_id=5)]),
            "unknown-class",
            r"annotations\[0\] \(id 5\): category_id 5 is not among the categories",
        ),
        (
            coco_table(annotations=[annotation(image_id=8)]),
            "label-without-image",
            "image_id 8 is not among the images",
        ),
        (
            coco_table(annotations=[{"id": 1, "image_id": 7}]),
            "malformed-label",
            "key 'category_id' is missing",
        ),
        (
            coco_table(annotations=[{"image_id": 7, "category_id": 9}]),
            "malformed-label",
            r"annotations\[0\]: the key 'bbox' is missing",
        ),
        (
            coco_table(annotations=[annotation(bbox=[1, 2, 3])]),
            "malformed-label",
            "expected four numbers",
        ),
        (
            coco_table(annotations=[annotation(bbox=[1, 2, 3, "x"])]),
            "malformed-label",
            "expected four numbers",
        ),
        (
            coco_table(annotations=[annotation(bbox=[1, 2, 3, True])]),
            "malformed-label",
            "expected four numbers",
        ),
        (coco_table(annotations=[annotation(bbox=None)]), "malformed-label", "bbox is None"),
        (
            coco_table(annotations=[annotation(bbox=[1, 2, float("nan"), 4])]),
            "malformed-label",
            "expected four numbers of pixels",
        ),
        (
            coco_table(annotations=[annotation(bbox=[1, 2, float("inf"), 4])]),
            "malformed-label",
            "expected four numbers of pixels",
        ),
        (coco_table(annotations=[annotation(area="big")]), "malformed-label", "area is 'big'"),
    ],
)
def test_each_mistake_is_a_fault(tmp_path: Path, table: Any, kind: str, message: str) -> None:
    file = coco_set(tmp_path, table)
    faults = [f for f in read_dataset(tmp_path, "coco").faults if f.kind == kind]
    assert len(faults) >= 1
    assert re.search(message, faults[0].place) and str(file) in faults[0].place


def test_labels_beside_a_malformed_one_are_read(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [
        annotation(id=1, bbox=[1, 2, 3]),
        annotation(id=2, bbox=[1, 2, 3, "x"]),
        annotation(id=3, category_id=5),
        annotation(id=9, image_id="a"),
        {"id": 4, "image_id": 7, "bbox": [1, 2, 3, 4]},
        annotation(id=6, area="big"),
    ]
    good = [annotation(id=7, bbox=[5, 6, 7, 8]), annotation(id=8, image_id=3)]
    coco_set(tmp_path, coco_table(annotations=[*bad, *good]))
    index = load_dataset(tmp_path, val_split=0)
    assert [len(record.class_indices) for record in index.splits["train"]] == [1, 1]
    assert [re.findall(r"annotations\[(\d)\]", f.place) for f in index.faults] == [
        [str(i)] for i in range(6)
    ]


def test_a_file_that_cannot_be_read_leaves_the_other_splits(tmp_path: Path) -> None:
    coco_set(tmp_path, coco_table())
    broken = coco_set(tmp_path, '{"images": [', "val")
    index = load_dataset(tmp_path)
    assert (set(index.splits), index.lost_splits) == ({"train"}, {"val"})  # no other val is made
    assert [f.kind for f in index.faults] == ["malformed-file"]
    assert f"{broken} line 1: not valid JSON" in index.faults[0].place


def test_nothing_usable_is_an_error_that_says_how_much_is_wrong(tmp_path: Path) -> None:
    coco_set(tmp_path, coco_table(annotations=[annotation(id=i, bbox="x") for i in (1, 2, 3)]))
    with pytest.raises(DataError, match=r"annotations\[0\] \(id 1\): bbox is 'x'") as caught:
        load_dataset(tmp_path)
    assert "dino check" in caught.value.hint and "2 more faults" in caught.value.hint


def test_images_that_share_an_id_are_left_out_with_their_labels(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 7, "file_name": "b.jpg"}]
    more = {"id": 8, "file_name": "c.jpg"}
    entries = [annotation(), annotation(id=6, bbox=[5, 6, 7, 8]), annotation(id=9, image_id=8)]
    coco_set(tmp_path, coco_table(images=[*images, more], annotations=entries))
    image_file(tmp_path / "images/train/c.jpg", (40, 30))
    index = read_dataset(tmp_path)
    assert [(r.path.name, len(r.class_indices)) for r in index.splits["train"]] == [("c.jpg", 1)]
    kinds = [f.kind for f in index.faults]
    assert kinds == ["duplicate-id", "label-without-image", "label-without-image"]


def test_a_category_id_of_two_names_is_left_out_with_its_labels(tmp_path: Path) -> None:
    categories = [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}, {"id": 9, "name": "cow"}]
    entries = [annotation(), annotation(id=6, category_id=4)]
    coco_set(tmp_path, coco_table(categories=categories, annotations=entries))
    index = read_dataset(tmp_path)
    assert index.classes.names == ("cat",)
    assert [len(r.class_indices) for r in index.splits["train"]] == [1, 0]
    assert [f.kind for f in index.faults] == ["malformed-class", "unknown-class"]
    coco_set(tmp_path, coco_table(categories=[categories[0], categories[0], categories[1]]))
    assert read_dataset(tmp_path).faults == ()  # twice the same is harmless


def test_one_bad_id_among_words_costs_one_image(tmp_path: Path) -> None:
    table = coco_table(annotations=[annotation(image_id="a"), annotation(id=6, image_id="b")])
    table["images"] = [{"id": n, "file_name": f"{n}.jpg"} for n in "abb"] + [{"file_name": "d.jpg"}]
    coco_set(tmp_path, table)
    index = read_dataset(tmp_path)
    assert [(r.path.name, len(r.class_indices)) for r in index.splits["train"]] == [("a.jpg", 1)]
    kinds = {f.kind for f in index.faults}
    assert {"duplicate-id", "malformed-image-entry", "label-without-image"} <= kinds


def test_an_image_whose_labels_are_all_lost_is_left_out(tmp_path: Path) -> None:
    entries = [annotation(bbox="x"), annotation(id=6, image_id=3), annotation(id=8, image_id=3)]
    coco_set(tmp_path, coco_table(annotations=entries))
    index = read_dataset(tmp_path)
    assert [r.path.name for r in index.splits["train"]] == ["b.jpg"]
    assert [f.kind for f in index.faults] == ["malformed-label", "labels-lost"]
    assert index.faults[1].paths == (tmp_path / "images/train/a.jpg",)


def test_class_names_must_differ(tmp_path: Path) -> None:
    table = coco_table(categories=[{"id": 9, "name": "a"}, {"id": 4, "name": "a"}])
    coco_set(tmp_path, table)
    with pytest.raises(DataError, match="class names are not unique: a"):
        read_dataset(tmp_path, "coco")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no COCO data set found"):
        read_dataset(tmp_path, "coco")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    coco_set(tmp_path, coco_table()).write_bytes(b'{"images": "\xff"}')
    with pytest.raises(DataError, match="not valid JSON"):
        load_dataset(tmp_path, "coco")


def test_categories_must_agree_between_splits(tmp_path: Path) -> None:
    coco_set(tmp_path, coco_table())
    other = coco_table(categories=[{"id": 9, "name": "cow"}, {"id": 4, "name": "cat"}])
    coco_set(tmp_path, other, "val")
    with pytest.raises(DataError, match="category 9 is 'cow' here and 'dog' in"):
        read_dataset(tmp_path, "coco")


def test_boxes_outside_are_clipped_and_empty_ones_left_out(tmp_path: Path) -> None:
    boxes = [[-5, 10, 20, 50], [50, 5, 10, 10], [3, 3, 0, 5], [3, 3, -2, 5], [1, 1, 39.005, 29]]
    table = coco_table(annotations=[annotation(id=i, bbox=box) for i, box in enumerate(boxes)])
    coco_set(tmp_path, table)
    index = read_dataset(tmp_path, "coco")
    record = index.splits["train"][0]
    # rounding (the last, 0.005 px too far) is left as it is
    np.testing.assert_allclose(
        record.boxes_xyxy_px, [[0, 10, 15, 30], [1, 1, 40.005, 30]], atol=1e-5
    )
    clipped, dropped = index.warnings
    assert clipped.startswith("1 box reaches outside its image and is clipped (")
    assert "annotations[0] (id 0): corners -5, 10, 15, 60 in " in clipped
    assert "a.jpg of 40x30" in clipped
    assert dropped.startswith("3 boxes have no area inside their images and are left out (first: ")


def test_missing_and_broken_images_are_left_out(tmp_path: Path) -> None:
    table = coco_table()
    table["images"] += [
        {"id": 20, "file_name": "gone.jpg"},
        {"id": 21, "file_name": "gone too.jpg"},
        {"id": 22, "file_name": "text.jpg"},
        {"id": 23, "file_name": "empty.jpg"},
        {"id": 24, "file_name": "tall.jpg", "width": 40, "height": 30},
    ]
    coco_set(tmp_path, table)
    folder = tmp_path / "images/train"
    (folder / "text.jpg").write_text("hello")
    (folder / "empty.jpg").write_bytes(b"")
    image_file(folder / "tall.jpg", (30, 40))
    index = read_dataset(tmp_path, "coco")
    assert [r.image_id for r in index.splits["train"]] == [7, 3]
    broken, missing, shape = index.warnings
    assert missing.startswith("2 labeled image files are missing and are left out (first: ")
    assert "gone.jpg" in missing
    assert broken.startswith("2 files are not readable images") and "text.jpg" in broken
    assert "40x30 stated" in shape and "tall.jpg is 30x40 upright" in shape


def test_a_split_without_its_images_is_missing(tmp_path: Path) -> None:
    table = coco_table(images=[{"id": 7, "file_name": "x.jpg"}])
    coco_set(tmp_path, table)
    found = r"none of its 1 images was found, e\.g\. x\.jpg \(looked in .*images/train"
    with pytest.raises(DataError, match=found):
        load_dataset(tmp_path, "coco")
    coco_set(tmp_path, coco_table(), "val")
    index = load_dataset(tmp_path)
    assert list(index.splits) == ["val"]
    assert [f.kind for f in index.faults if f.kind != "label-without-image"] == ["missing-split"]


def test_sizes_come_from_the_upright_file(tmp_path: Path) -> None:
    table = coco_table(
        images=[{"id": 7, "file_name": "turned.jpg"}, {"id": 3, "file_name": "half.jpg",
                 "width": 80, "height": 60}],
        annotations=[annotation(id=1, image_id=3, bbox=[20, 10, 40, 20], area=700.0)],
    )  # fmt: skip
    coco_set(tmp_path, table)
    image_file(tmp_path / "images/train/turned.jpg", (40, 30), orientation=6)
    image_file(tmp_path / "images/train/half.jpg", (40, 30))
    index = read_dataset(tmp_path, "coco")
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
    coco_set(tmp_path, coco_table(categories=categories))
    index = read_dataset(tmp_path, "coco")
    assert index.classes.names == ("cat", "dog")
    assert "category 0 'pets'" in index.warnings[0]


def test_roboflow_parent_of_the_class_name_itself(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "dog", "supercategory": "none"},
        {"id": 9, "name": "dog", "supercategory": "dog"},
        {"id": 4, "name": "cat", "supercategory": "dog"},
    ]
    coco_set(tmp_path, coco_table(categories=categories))
    assert read_dataset(tmp_path, "coco").classes.names == ("cat", "dog")


def test_unread_parts_are_reported(tmp_path: Path) -> None:
    table = coco_table(annotations=[annotation(segmentation=[[1, 2, 3, 4, 5, 6]]),
                                    annotation(id=6, segmentation=[])])  # fmt: skip
    coco_set(tmp_path, table)
    index = read_dataset(tmp_path, "coco")
    assert index.unread == ("1 annotations have a 'segmentation', which is not kept",)
    assert save_dataset(index, tmp_path / "out", "coco") == list(index.unread)


def test_written_set_reads_back_the_same(tmp_path: Path) -> None:
    coco_set(tmp_path / "in", coco_table())
    coco_set(tmp_path / "in", coco_table(), "val")
    before = read_dataset(tmp_path / "in", "coco")
    assert write_coco(before, tmp_path / "out") == []
    after = read_dataset(tmp_path / "out", "coco")
    assert after.classes == before.classes and after.warnings == ()
    for split in ("train", "val"):
        for old, new in zip(before.splits[split], after.splits[split], strict=True):
            assert (new.image_id, new.path.name) == (old.image_id, old.path.name)
            assert new.path.read_bytes() == old.path.read_bytes()
            np.testing.assert_array_equal(new.boxes_xyxy_px, old.boxes_xyxy_px)
            np.testing.assert_array_equal(new.is_crowd, old.is_crowd)
            np.testing.assert_array_equal(new.areas, old.areas)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    coco_set(tmp_path / "in", coco_table())
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="out: cannot be written"):
        save_dataset(read_dataset(tmp_path / "in", "coco"), tmp_path / "out", "coco")


@pytest.mark.skipif(not GENERAL.is_dir(), reason="the shared data set is not here")
def test_agrees_with_pycocotools() -> None:
    from pycocotools.coco import COCO

    file = GENERAL / "annotations/instances_val.json"
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(file))
    index = read_dataset(file, "coco")
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
