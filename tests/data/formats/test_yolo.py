"""YOLO folders: hand-worked files, every kind of mistake, and a lossless way to COCO and back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from datasets import YOLO_YAML, image_file, text_file, yolo_set
from hypothesis import given, settings
from hypothesis import strategies as st

from dino_core.data.formats.coco import write_coco
from dino_core.data.formats.repairs import Repairs, make_record
from dino_core.data.formats.yolo import write_yolo
from dino_core.data.load import read_dataset
from dino_core.data.records import DatasetIndex
from dino_core.data.save import save_dataset
from dino_core.detections import ClassMap
from dino_core.errors import DataError


def test_hand_worked_set(tmp_path: Path) -> None:
    yolo_set(tmp_path, "1 0.5 0.5 0.25 0.5\n\n0 0.1 0.2 0.2 0.4\n")
    image_file(tmp_path / "images/train/empty.png", (8, 8))
    index = read_dataset(tmp_path, "yolo")
    assert (
        index.format == "yolo" and index.warnings == () and list(index.splits) == ["train", "val"]
    )
    assert index.classes == ClassMap(("cat", "dog"), (0, 1))
    record, empty = index.splits["train"]
    assert (record.image_id, record.width, record.height) == (1, 40, 20)
    np.testing.assert_allclose(record.boxes_xyxy_px, [[15, 5, 25, 15], [0, 0, 8, 8]], atol=1e-5)
    assert record.class_indices.tolist() == [1, 0]
    np.testing.assert_allclose(record.areas, [100, 64], rtol=1e-5)
    assert empty.image_id == 2 and len(empty.class_indices) == 0
    assert read_dataset(tmp_path / "data.yaml", "yolo").splits.keys() == index.splits.keys()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("names: {0: cat, 1: dog}", ("cat", "dog")),
        ("names:\n  0: no\n  1: 'on'\nnc: 2", ("no", "on")),
        ("nc: 2\nnames: [1, 2.50]", ("1", "2.50")),
        ("nc: 2", ("class_0", "class_1")),
    ],
)
def test_forms_of_class_names(tmp_path: Path, names: str, expected: tuple[str, ...]) -> None:
    yolo_set(tmp_path, yaml=f"train: images/train\nval: images/val\n{names}\n")
    assert read_dataset(tmp_path, "yolo").classes.names == expected


def test_roboflow_layout_and_quirky_paths(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        image_file(tmp_path / split / "images/a b ü.jpg")
        text_file(tmp_path / split / "labels/a b ü.txt", "0 0.5 0.5 1 1")
    yaml = "train: ../train/images\nval: ../valid/images\ntest: ''\nnc: 1\nnames: ['thing']\n"
    text_file(tmp_path / "data.yaml", yaml)
    index = read_dataset(tmp_path, "yolo")
    assert {split: len(r) for split, r in index.splits.items()} == {"train": 1, "val": 1}
    (tmp_path / "data.yaml").unlink()
    bare = read_dataset(tmp_path, "yolo")
    assert bare.classes.names == ("class_0",)
    assert "names no classes" in bare.warnings[0]
    np.testing.assert_array_equal(
        bare.splits["val"][0].boxes_xyxy_px, index.splits["val"][0].boxes_xyxy_px
    )


def test_path_that_leads_nowhere_here_falls_back_to_the_files_folder(tmp_path: Path) -> None:
    yolo_set(tmp_path, yaml="path: /content/datasets/pets\n" + YOLO_YAML)
    assert len(read_dataset(tmp_path, "yolo").splits["train"]) == 1


def test_path_to_another_folder(tmp_path: Path) -> None:
    yolo_set(tmp_path / "pets", yaml=None)
    file = text_file(tmp_path / "configs/pets.yaml", "path: ../pets\n" + YOLO_YAML)
    assert (
        read_dataset(file, "yolo")
        .splits["val"][0]
        .path.samefile(tmp_path / "pets/images/val/a.jpg")
    )


@pytest.mark.parametrize(
    "yaml",
    [
        "path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}",
        "train: ./images/train/\nvalid: ./images/val/\nnames: [cat, dog]",
        "train: [images/train]\nvalidation: [images/val]\nnc: 2\nnames:\n- cat\n- dog",
        "train: train.txt\nval: lists/val.txt\nnames: [cat, dog]",
        "train: [train.txt]\nval: images\\val\nnames: [cat, dog]",
    ],
)
def test_spellings_of_data_yaml(tmp_path: Path, yaml: str) -> None:
    yolo_set(tmp_path, yaml=yaml)
    text_file(tmp_path / "train.txt", "./images/train/a.jpg\n\n")
    text_file(tmp_path / "lists/val.txt", "images/val/a.jpg\n")
    index = read_dataset(tmp_path, "yolo")
    assert {split: len(r) for split, r in index.splits.items()} == {"train": 1, "val": 1}
    assert index.classes.names == ("cat", "dog") and index.warnings == ()


@pytest.mark.parametrize("shape", ["[2, 3]", "[3, 2]"])
def test_poses_become_boxes(tmp_path: Path, shape: str) -> None:
    yolo_set(tmp_path, "1 0.5 0.5 0.25 0.5 0.4 0.4 2 0 0 0\n", f"{YOLO_YAML}kpt_shape: {shape}\n")
    index = read_dataset(tmp_path, "yolo")
    np.testing.assert_allclose(index.splits["train"][0].boxes_xyxy_px, [[15, 5, 25, 15]])
    assert index.warnings[0].startswith("2 poses became their boxes")


def test_wrong_shape_of_poses_is_named(tmp_path: Path) -> None:
    yolo_set(tmp_path, yaml=YOLO_YAML + "kpt_shape: 17\n")
    with pytest.raises(
        DataError, match=r"data\.yaml: kpt_shape is '17', expected e\.g\. \[17, 3\]"
    ):
        read_dataset(tmp_path, "yolo")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", r"a\.txt line 2: 4 numbers, a YOLO box has 5 \(class cx cy w h\)"),
        ("0 0.5 0.5 0.5 0.5 0.9", r"line 2: 6 numbers, a YOLO box has 5"),
        ("0", r"line 2: 1 number, a YOLO box has 5"),
        ("cat 0.5 0.5 0.5 0.5", r"line 2: 'cat' is not a number"),
        ("0 0.5 0.5 nan 0.5", "not finite"),
        ("0.5 0.5 0.5 0.5 0.5", r"class is 0\.5, expected an integer"),
        ("-1 0.5 0.5 0.5 0.5", "class is -1, expected an integer from 0"),
        ("2 0.5 0.5 0.5 0.5", r"class 2, but .*data\.yaml names 2 classes \(0 to 1\)"),
        ("0 120 90 30 40", "fractions of the image's width and height, not pixels"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    yolo_set(tmp_path, f"0 0.5 0.5 0.5 0.5\n{line}\n")
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(tmp_path, "yolo")
    assert "labels/train/a.txt line 2" in caught.value.message


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: [", "not valid YAML"),
        ("just text", "expected keys like train, val and names"),
        ("names: [a, b]", "neither 'train' nor 'val' is given, found names"),
        ("train: images/nope\nnames: [a, b]", "'train' is images/nope, which is not there"),
        ("train: {a: b}\nnames: [a, b]", "'train' is .*, expected a folder"),
        ("train: data.yaml\nnames: [a, b]", r"expected a folder or a \.txt list"),
        ("train: images/train\nnames: [a, b]\nnc: 3", "nc is 3, but names has 2 classes"),
        ("train: images/train\nnames: [a, b]\nnc: many", "nc is 'many'"),
        ("train: images/train\nnames: {1: a, 2: b}", "names has the keys 1, 2, expected 0 to 1"),
        ("train: images/train\nnames: a", "expected a list of class names"),
        ("train: images/train\nnames: []", "there are no classes"),
        ("train: images/train\nnames: [a, a]", "class names are not unique: a"),
    ],
)
def test_wrong_yaml_is_named(tmp_path: Path, yaml: str, message: str) -> None:
    yolo_set(tmp_path, "", yaml)
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(tmp_path / "data.yaml", "yolo")
    assert "data.yaml" in caught.value.message


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_that_is_not_there_is_left_out(tmp_path: Path, split: str) -> None:
    yolo_set(tmp_path, "", f"train: images/train\n{split}: ../{split}/images\nnames: [a, b]")
    index = read_dataset(tmp_path, "yolo")
    assert list(index.splits) == ["train"]
    assert f"'{split}' is ../{split}/images, which is not there: no" in index.warnings[0]


@pytest.mark.parametrize("place", ["/kaggle/input/x/images/train", r"C:\Users\me\x\images\train"])
def test_paths_of_another_machine(tmp_path: Path, place: str) -> None:
    yolo_set(tmp_path, "", f"train: {place}\nnames: [a, b]")
    assert {r.path.parent for r in read_dataset(tmp_path, "yolo").splits["train"]} == {
        tmp_path / "images/train"
    }


def test_no_label_file_at_all_is_an_error(tmp_path: Path) -> None:
    image_file(tmp_path / "images/train/a.jpg")
    text_file(tmp_path / "data.yaml", "train: images/train\nnames: [a]")
    with pytest.raises(DataError, match="none of the 1 images of train has a label file") as caught:
        read_dataset(tmp_path, "yolo")
    assert str(Path("labels/train/a.txt")) in caught.value.hint


def test_no_images_and_no_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no YOLO data set found"):
        read_dataset(tmp_path, "yolo")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match="the train split has no images"):
        read_dataset(tmp_path, "yolo")


def test_unreadable_images_and_stray_labels(tmp_path: Path) -> None:
    yolo_set(tmp_path)
    text_file(tmp_path / "images/train/b.jpg", "no image")
    text_file(tmp_path / "labels/train/c.txt", "0 0.5 0.5 0.5 0.5")
    first, second = read_dataset(tmp_path, "yolo").warnings
    assert "not a readable image" in first and "b.jpg" in first
    assert "belongs to no image" in second and "c.txt" in second
    (tmp_path / "images/train/a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="no image of train can be read"):
        read_dataset(tmp_path, "yolo")


def test_label_file_that_is_not_text(tmp_path: Path) -> None:
    yolo_set(tmp_path)
    (tmp_path / "labels/train/a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"a\.txt: cannot be read as text"):
        read_dataset(tmp_path, "yolo")


def test_outlines_become_boxes(tmp_path: Path) -> None:
    yolo_set(tmp_path, "0 0.25 0.5 0.75 0.25 0.5 1.0\n")
    index = read_dataset(tmp_path, "yolo")
    np.testing.assert_allclose(index.splits["train"][0].boxes_xyxy_px, [[10, 5, 30, 20]], atol=1e-5)
    assert index.warnings[0].startswith("2 outlines became their boxes")


def test_boxes_outside_are_clipped(tmp_path: Path) -> None:
    yolo_set(tmp_path, "0 0.0 0.5 0.5 0.5\n0 0.5 0.5 0 0.5\n")
    index = read_dataset(tmp_path, "yolo")
    np.testing.assert_allclose(index.splits["val"][0].boxes_xyxy_px, [[0, 5, 10, 15]], atol=1e-5)
    assert len(index.warnings) == 2


def test_what_yolo_cannot_hold_is_listed(tmp_path: Path) -> None:
    path = image_file(tmp_path / "a.jpg")
    record = make_record(
        17, path, (40, 20), [[0, 0, 10, 10], [0, 0, 40, 20]], [0, 1], ["", ""], Repairs(),
        is_crowd=[False, True], areas=[55.0, None],
    )  # fmt: skip
    index = DatasetIndex(tmp_path, "coco", ClassMap(("cat", "dog"), (3, 8)), {"train": (record,)})
    crowd, ids, images, areas = save_dataset(index, tmp_path / "out", "yolo")
    assert crowd.startswith("1 crowd boxes were left out")
    assert ids == "the class ids (3, 8) became 0 to 1"
    assert images.startswith("train: image ids and order are lost")
    assert areas.startswith("1 areas are lost")
    label = (tmp_path / "out/labels/train/a.txt").read_text()
    assert label == "0 0.125000000 0.250000000 0.250000000 0.500000000\n"


def test_images_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    paths = [image_file(tmp_path / folder / name) for folder, name in
             (("x", "a.jpg"), ("y", "a.png"), ("y", "A.jpg"))]  # fmt: skip
    records = tuple(
        make_record(i + 1, path, (40, 20), [[i, 0, 10, 10]], [0], [""], Repairs())
        for i, path in enumerate(paths)
    )
    index = DatasetIndex(tmp_path, "coco", ClassMap.from_names(["a"]), {"train": records})
    lost = save_dataset(index, tmp_path / "out", "yolo")
    assert any("2 images of one name were renamed" in sentence for sentence in lost)
    after = read_dataset(tmp_path / "out", "yolo").splits["train"]
    lefts = {r.path.name: float(r.boxes_xyxy_px[0, 0]) for r in after}
    assert lefts == pytest.approx({"a.jpg": 0, "y_a.png": 1, "y_A_2.jpg": 2}, abs=1e-4)


names = st.lists(
    st.text(st.characters(blacklist_categories=("Cs", "Cc"), max_codepoint=0x2FF), min_size=1)
    .map(str.strip)
    .filter(bool),
    min_size=1,
    max_size=4,
    unique=True,
)


@st.composite
def boxes_in(draw: st.DrawFn, width: int, height: int) -> list[float]:
    x1 = draw(st.floats(0, width - 1, width=32))
    y1 = draw(st.floats(0, height - 1, width=32))
    return [x1, y1, draw(st.floats(x1 + 0.5, width)), draw(st.floats(y1 + 0.5, height))]


@settings(max_examples=25, deadline=None)
@given(data=st.data(), class_names=names, size=st.tuples(st.integers(2, 300), st.integers(2, 300)))
def test_round_trip(data: st.DataObject, class_names: list[str], size: tuple[int, int]) -> None:
    boxes = data.draw(st.lists(boxes_in(*size), max_size=6))
    labels = [data.draw(st.integers(0, len(class_names) - 1)) for _ in boxes]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = image_file(root / "in/image.png", size)
        record = make_record(1, path, size, boxes, labels, [""] * len(boxes), Repairs())
        classes = ClassMap.from_names(class_names)
        index = DatasetIndex(root, "coco", classes, {"train": (record,), "val": (record,)})
        assert write_yolo(index, root / "yolo") == []
        yolo = read_dataset(root / "yolo", "yolo")
        assert write_coco(yolo, root / "coco") == []
        coco = read_dataset(root / "coco", "coco")
        for after in (yolo, coco):
            assert after.classes == classes and after.warnings == ()
            for split in ("train", "val"):
                (new,) = after.splits[split]
                assert (new.width, new.height) == size
                assert new.class_indices.tolist() == labels
                np.testing.assert_allclose(new.boxes_xyxy_px, record.boxes_xyxy_px, atol=1e-3)
