"""YOLO data sets: hand-worked files, every kind of mistake, and lossless conversion to COCO."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from datasets import YOLO_YAML, image_file, record_of, text_file, yolo_set
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dino_core.data.check.run import quick_findings
from dino_core.data.faults import Fault
from dino_core.data.formats.coco import write_coco
from dino_core.data.formats.yolo import write_yolo
from dino_core.data.load import load_dataset, read_dataset
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
def test_spellings_of_class_names(tmp_path: Path, names: str, expected: tuple[str, ...]) -> None:
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


def the_faults(index: DatasetIndex, kind: str) -> list[Fault]:
    return [fault for fault in index.faults if fault.kind == kind]


@pytest.mark.parametrize(
    ("kind", "line", "found"),
    [
        ("malformed-label", "0 0.5 0.5 0.5", "4 numbers, a YOLO box has 5 (class cx cy w h)"),
        ("malformed-label", "0 0.5 0.5 0.5 0.5 0.9", "6 numbers, a YOLO box has 5"),
        ("malformed-label", "0", "1 number, a YOLO box has 5"),
        ("malformed-label", "cat 0.5 0.5 0.5 0.5", "'cat' is not a number"),
        ("malformed-label", "0 0,5 0,5 0,5 0,5", "'0,5' is not a number"),
        ("malformed-label", "0 0.5 0.5 nan 0.5", "a number that is not finite"),
        ("malformed-label", "inf 0.5 0.5 0.5 0.5", "a number that is not finite"),
        ("malformed-label", "0.5 0.5 0.5 0.5 0.5", "class is 0.5, expected an integer"),
        ("malformed-label", "-1 0.5 0.5 0.5 0.5", "class is -1, expected an integer from 0"),
        ("malformed-label", "1e18 0.5 0.5 0.5 0.5", "class is 1e18, expected an integer from 0"),
        ("malformed-label", "0 120 90 30 40", "fractions of the image's width and height, not"),
        ("unknown-class", "2 0.5 0.5 0.5 0.5", "class 2, but {yaml} names 2 classes (0 to 1)"),
    ],
)
def test_a_malformed_line_is_a_fault_and_the_others_are_read(
    tmp_path: Path, kind: str, line: str, found: str
) -> None:
    yolo_set(tmp_path)
    file = text_file(tmp_path / "labels/train/a.txt", f"0 0.5 0.5 0.5 0.5\n{line}\n1 0 0 1 1\n")
    index = load_dataset(tmp_path)
    (fault,) = (fault for fault in index.faults if fault.kind != "box-outside")
    assert fault.kind == kind and fault.paths == (tmp_path / "images/train/a.jpg",)
    assert fault.place.startswith(f"{file} line 2: ")
    assert found.format(yaml=tmp_path / "data.yaml") in fault.place
    assert index.splits["train"][0].class_indices.tolist() == [0, 1]


BROKEN = {
    "b": ("malformed-label", "0 0.5 0.5 0.5", "4 numbers"),
    "c": ("malformed-label", "dog 0.5 0.5 0.5 0.5", "'dog' is not a number"),
    "d": ("malformed-label", "0 0.5 0.5 nan 0.5", "not finite"),
    "e": ("malformed-label", "1.5 0.5 0.5 0.5 0.5", "class is 1.5"),
    "f": ("malformed-label", "0 320 240 64 48", "not pixels"),
    "g": ("unknown-class", "7 0.5 0.5 0.5 0.5", "class 7"),
}


@pytest.mark.parametrize("with_yaml", [True, False])
def test_six_kinds_of_malformed_labels_in_six_files_are_all_listed(
    tmp_path: Path, with_yaml: bool
) -> None:
    yolo_set(tmp_path, yaml=YOLO_YAML if with_yaml else None)
    text_file(tmp_path / "classes.txt", "cat\ndog\n")
    images = []
    for name, (_, line, _) in BROKEN.items():
        images.append(image_file(tmp_path / f"images/train/{name}.jpg"))
        text_file(tmp_path / f"labels/train/{name}.txt", f"\n0 0.5 0.5 0.25 0.5\n{line}\n")
    index = load_dataset(tmp_path)
    expected = list(zip(BROKEN.items(), images, strict=True))
    assert len(index.faults) == 6
    for fault, ((name, (kind, _, found)), image) in zip(index.faults, expected, strict=True):
        assert (fault.kind, fault.paths) == (kind, (image,))
        assert fault.place.startswith(f"{tmp_path / f'labels/train/{name}.txt'} line 3: ")
        assert found in fault.place
    assert [r.path.stem for r in index.splits["train"]] == list("abcdefg")
    for record in index.splits["train"][1:]:
        np.testing.assert_allclose(record.boxes_xyxy_px, [[15, 5, 25, 15]])
    counts = {finding.kind: finding.count for finding in quick_findings(index)}
    assert (counts["malformed-label"], counts["unknown-class"]) == (5, 1)


def test_all_labels_malformed_is_an_error_only_where_they_are_used(tmp_path: Path) -> None:
    yolo_set(tmp_path, "0 1 2\nx 0.5 0.5 0.5 0.5\n")
    index = read_dataset(tmp_path)
    assert len(the_faults(index, "malformed-label")) == 4
    with pytest.raises(DataError, match=r"labels/train/a\.txt line 1: 3 numbers") as caught:
        load_dataset(tmp_path)
    assert "3 more faults" in caught.value.hint
    (tmp_path / "data.yaml").unlink()
    assert read_dataset(tmp_path).classes.names == ()  # none is named and none is used
    with pytest.raises(DataError, match="line 1: 3 numbers"):
        load_dataset(tmp_path)


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
        ("train: images/train\nnames: [a, a]", "class names are not unique: a"),
    ],
)
def test_wrong_yaml_is_named(tmp_path: Path, yaml: str, message: str) -> None:
    yolo_set(tmp_path, "", yaml)
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(tmp_path / "data.yaml", "yolo")
    assert "data.yaml" in caught.value.message


def test_neither_names_nor_labels_leave_no_class(tmp_path: Path) -> None:
    yolo_set(tmp_path, "", "train: images/train\nnames: []")
    with pytest.raises(DataError, match="there are no labels, so no class is known"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("../gone/images", "is ../gone/images, which is not there (looked for"),
        ("empty", "is empty, which has no images"),
        ("{a: b}", "is {'a': 'b'}, expected a folder"),
        ("data.yaml", "is data.yaml, expected a folder or a .txt list"),
        ("binary.txt", "binary.txt: cannot be read"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_that_is_not_there_is_left_out(
    tmp_path: Path, split: str, place: str, found: str
) -> None:
    other = "val" if split == "train" else "train"
    yolo_set(tmp_path, yaml=f"{other}: images/{other}\n{split}: {place}\nnames: [a, b]")
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    index = load_dataset(tmp_path, val_split=0)
    assert list(index.splits) == [other] and len(index.splits[other]) == 1
    (fault,) = index.faults
    assert fault.kind == "missing-split" and found in fault.place


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_label_files_is_listed(tmp_path: Path, split: str) -> None:
    yolo_set(tmp_path)
    (tmp_path / f"labels/{split}/a.txt").unlink()
    index = load_dataset(tmp_path)
    (fault,) = index.faults
    image, labels = tmp_path / f"images/{split}/a.jpg", tmp_path / f"labels/{split}/a.txt"
    assert (fault.kind, fault.paths) == ("missing-label", (image,))
    assert fault.place == f"{image}: no {labels}"
    findings = {finding.kind: finding.count for finding in quick_findings(index)}
    assert findings["missing-label"] == findings["no-boxes"] == 1


LISTS = "train: train.txt\nval: val.txt\nnames: [cat, dog]\n"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A data set of one image per split, each named in a list."""
    yolo_set(tmp_path, yaml=LISTS)
    for split in ("train", "val"):
        text_file(tmp_path / f"{split}.txt", f"images/{split}/a.jpg\n")
    return tmp_path


@pytest.mark.parametrize("kind", ["missing-image", "unreadable-image"])
def test_a_split_without_usable_images_is_left_out(listed: Path, kind: str) -> None:
    image = listed / "images/val/a.jpg"
    image.unlink() if kind == "missing-image" else image.write_bytes(b"")
    index = load_dataset(listed, val_split=0)
    assert list(index.splits) == ["train"] and len(index.splits["train"]) == 1
    broken, split = index.faults
    assert (broken.kind, broken.paths) == (kind, (image,)) and str(image) in broken.place
    assert split.kind == "missing-split"
    assert split.place == f"{listed / 'data.yaml'}: none of the 1 images of val is usable"


@pytest.mark.parametrize("kind", ["missing-image", "unreadable-image"])
def test_no_usable_image_at_all_is_an_error(listed: Path, kind: str) -> None:
    for split in ("train", "val"):
        image = listed / f"images/{split}/a.jpg"
        image.unlink() if kind == "missing-image" else image.write_bytes(b"")
    index = read_dataset(listed)
    assert index.splits == {} and len(the_faults(index, kind)) == 2
    with pytest.raises(DataError, match=r"images/train/a\.jpg: ") as caught:
        load_dataset(listed)
    assert "1 more fault" in caught.value.hint


@pytest.mark.parametrize("place", ["/kaggle/input/x/images/train", r"C:\Users\me\x\images\train"])
def test_paths_of_another_machine(tmp_path: Path, place: str) -> None:
    yolo_set(tmp_path, "", f"train: {place}\nnames: [a, b]")
    assert {r.path.parent for r in read_dataset(tmp_path, "yolo").splits["train"]} == {
        tmp_path / "images/train"
    }


def test_no_label_file_at_all_is_an_error(tmp_path: Path) -> None:
    image_file(tmp_path / "images/train/a.jpg")
    text_file(tmp_path / "data.yaml", "train: images/train\nnames: [a]")
    with pytest.raises(DataError, match="none of the 1 images has a label file") as caught:
        read_dataset(tmp_path, "yolo")
    assert str(Path("labels/train/a.txt")) in caught.value.hint


def test_no_images_and_no_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no YOLO data set found"):
        read_dataset(tmp_path, "yolo")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match="the train split has no images"):
        read_dataset(tmp_path, "yolo")


def test_a_bare_split_without_images_is_left_out(tmp_path: Path) -> None:
    yolo_set(tmp_path, yaml=None)
    (tmp_path / "images/val/a.jpg").unlink()
    index = read_dataset(tmp_path, "yolo")
    assert list(index.splits) == ["train"]
    (fault,) = the_faults(index, "missing-split")
    assert fault.place == f"{tmp_path / 'images/val'}: the val split has no images"


def test_unreadable_images_and_stray_labels(tmp_path: Path) -> None:
    yolo_set(tmp_path)
    image = text_file(tmp_path / "images/train/b.jpg", "no image")
    stray = text_file(tmp_path / "labels/train/c.txt", "0 0.5 0.5 0.5 0.5")
    index = read_dataset(tmp_path, "yolo")
    assert index.faults == (
        Fault("unreadable-image", f"{image}: cannot be opened as an image", (image,)),
        Fault("label-without-image", str(stray)),
    )
    assert [record.path.name for record in index.splits["train"]] == ["a.jpg"]


@pytest.mark.parametrize(
    "content", [b"\xff\xfe0\x00", b"\x00" * 40, "0 0.5 0.5 0.5 0.5".encode("utf-16-le")]
)
def test_a_label_file_that_is_not_text_leaves_out_its_image(tmp_path: Path, content: bytes) -> None:
    yolo_set(tmp_path)
    image = image_file(tmp_path / "images/train/b.jpg")
    file = tmp_path / "labels/train/b.txt"
    file.write_bytes(content)
    index = load_dataset(tmp_path)
    (fault,) = index.faults
    assert (fault.kind, fault.paths) == ("malformed-file", (image,))
    assert fault.place.startswith(f"{file}: ")
    assert [record.path.name for record in index.splits["train"]] == ["a.jpg"]
    assert "image-not-listed" not in {finding.kind for finding in quick_findings(index)}


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
    record = record_of(
        path, (40, 20), [[0, 0, 10, 10], [0, 0, 40, 20]], [0, 1], 17,
        is_crowd=[False, True], areas=[55.0, None],
    )  # fmt: skip
    index = DatasetIndex(tmp_path, "coco", ClassMap(("cat", "dog"), (3, 8)), {"train": (record,)})
    crowd, ids, images, areas = save_dataset(index, tmp_path / "out", "yolo")
    assert crowd.startswith("1 crowd box left out")
    assert ids == "the class ids (3, 8) became 0 to 1"
    assert images.startswith("train: image ids and order are lost")
    assert areas.startswith("areas of 1 box are lost")
    label = (tmp_path / "out/labels/train/a.txt").read_text()
    assert label == "0 0.125000000 0.250000000 0.250000000 0.500000000\n"


def test_images_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    paths = [image_file(tmp_path / folder / name) for folder, name in
             (("x", "a.jpg"), ("y", "a.png"), ("y", "A.jpg"))]  # fmt: skip
    records = tuple(
        record_of(path, (40, 20), [[i, 0, 10, 10]], [0], i + 1) for i, path in enumerate(paths)
    )
    index = DatasetIndex(tmp_path, "coco", ClassMap.from_names(["a"]), {"train": records})
    lost = save_dataset(index, tmp_path / "out", "yolo")
    assert any("2 images were renamed" in sentence for sentence in lost)
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
    # A COCO file whose boxes all lie within the first pixel is read as fractions.
    assume(not boxes or max(map(max, boxes)) > 1.01)
    labels = [data.draw(st.integers(0, len(class_names) - 1)) for _ in boxes]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = image_file(root / "in/image.png", size)
        record = record_of(path, size, boxes, labels)
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
