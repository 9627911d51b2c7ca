"""CSV tables: hand-worked files in every spelling, every layout and every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import image_file, record_of, text_file

from dino_core.data.check.run import quick_findings
from dino_core.data.formats.csv_table import write_csv
from dino_core.data.load import load_dataset, read_dataset
from dino_core.data.records import DatasetIndex
from dino_core.data.save import save_dataset
from dino_core.detections import ClassMap
from dino_core.errors import DataError

TABLE = "filename,class,xmin,ymin,xmax,ymax\na.jpg,dog,1.5,2,10,20\n"


def faults_of(index: DatasetIndex) -> list[tuple[str, str]]:
    """Kind and place of each fault, places without the folder of the data."""
    root = index.root if index.root.is_dir() else index.root.parent
    return [(fault.kind, fault.place.replace(f"{root}/", "")) for fault in index.faults]


def csv_set(root: Path, text: str = TABLE) -> Path:
    for name in ("a.jpg", "b.jpg"):
        image_file(root / name)
    return text_file(root / "boxes.csv", text)


def test_hand_worked_file(tmp_path: Path) -> None:
    text = (
        "\ufefffilename,width,height,class,xmin,ymin,xmax,ymax,split,confidence\n"
        "b.jpg,40,20,dog,1.5,2,10,20,valid,0.5\n"
        "a.jpg,40,20,cat,0,0,40,20,train,\n"
        "\n"
        'b.jpg,40,20,"cat",3,4,5,6,valid,\n'
        "c.jpg,40,20,,,,,,TRAIN,\n"
    )
    image_file(tmp_path / "images/c.jpg")
    index = read_dataset(csv_set(tmp_path, text), "csv")
    assert index.format == "csv" and index.warnings == ()
    assert index.classes == ClassMap(("cat", "dog"), (0, 1))
    assert list(index.splits) == ["train", "val"]
    first, empty = index.splits["train"]
    (second,) = index.splits["val"]
    assert second.boxes_xyxy_px.tolist() == [[1.5, 2, 10, 20], [3, 4, 5, 6]]
    assert second.class_indices.tolist() == [1, 0] and second.areas.tolist() == [153, 4]
    assert (second.image_id, second.width, second.height) == (1, 40, 20)
    assert first.boxes_xyxy_px.tolist() == [[0, 0, 40, 20]]
    assert (empty.image_id, empty.path) == (2, tmp_path / "images/c.jpg")
    assert empty.boxes_xyxy_px.shape == (0, 4)
    assert index.unread == ("1 rows have a 'confidence', which is not kept",)


@pytest.mark.parametrize(
    "text",
    [
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,40,20,dog,1,2,11,22",
        "filename,class,xmin,ymin,xmax,ymax\na.jpg,dog,1,2,11,22\n",
        "image,label,x_min,y_min,x_max,y_max\r\na.jpg,dog,1,2,11,22\r\n",
        "image_path;name;x1;y1;x2;y2\na.jpg;dog;1;2;11;22\n",
        "image_path|name|x1|y1|x2|y2\na.jpg|dog|1|2|11|22\n",
        "file_name\tcategory\tleft\ttop\tright\tbottom\na.jpg\tdog\t1\t2\t11\t22\n",
        "Image Name,Class Name,X,Y,W,H\na.jpg,dog,1,2,10,20\n",
        "filename,x,y,w,h,width,height,class\na.jpg,1,2,10,20,40,20,dog\n",
        "path,x,y,width,height,label\na.jpg,1,2,10,20,dog\n",
        "path,xmin,ymin,width,height,label\na.jpg,1,2,10,20,dog\n",
        "file,bbox_x,bbox_y,bbox_width,bbox_height,label\na.jpg,1,2,10,20,dog\n",
        '"filename";"class";"xmin";"ymin";"xmax";"ymax"\n"a.jpg";"dog";"1";"2";"11";"22"\n',
        "class,xmax,xmin,ymax,ymin,filename\ndog,11,1,22,2,/home/me/photos/a.jpg\n",
        "class,xmax,xmin,ymax,ymin,filename\ndog,11,1,22,2,photos\\a.jpg\n",
        'image_id,bbox,label\na,"[1, 2, 10.0, 20]",dog\n',
        'image_id,width,height,bbox,label\na,40,20,"[1 2 10 20]",dog\n',
        "image,class,x_center,y_center,width,height\na.jpg,dog,6,12,10,20\n",
        "image,class,cx,cy,w,h,width,height\na.jpg,dog,6,12,10,20,40,20\n",
        "ImageName,Label,XMin,YMin,XMax,YMax\na.jpg,dog,1,2,11,22\n",
        "dog,1,2,10,20,a.jpg,40,20\n",
        "a.jpg,1,2,11,22,dog\n",
        "a.jpg,dog,1,2,11,22\n",
        "a.jpg;1;2;11;22;dog\nb.jpg;;;;;\n",
        "b.jpg,,,,,\na.jpg,1,2,11,22,dog\n",
        "image_id,class_id,class_name,x_min,y_min,x_max,y_max\na,0,dog,1,2,11,22\n",
        "frame,xmin,xmax,ymin,ymax,object\nfolder/a,1,11,2,22,dog\n",
    ],
)
def test_spellings(tmp_path: Path, text: str) -> None:
    file = csv_set(tmp_path, text)
    image_file(tmp_path / "a.jpg", (40, 30))
    if "40,20" in text:
        image_file(tmp_path / "a.jpg", (40, 20))
    index = read_dataset(file, "csv")
    boxes = {r.path.name: r.boxes_xyxy_px.tolist() for r in index.splits["train"]}
    bottom = 20 if "40,20" in text else 22
    assert boxes["a.jpg"] == [[1, 2, 11, bottom]] and not boxes.get("b.jpg")
    assert index.classes.names == ("dog",)


@pytest.mark.parametrize(
    "text",
    [
        'image_id,width,height,bbox,source\na,40,20,"[1, 2, 10, 8]",lab\nb,40,20,,lab\n',
        "image,xmin,ymin,xmax,ymax\na.jpg,1,2,11,10\nb.jpg,,,,\n",
    ],
)
def test_tables_without_classes(tmp_path: Path, text: str) -> None:
    file = csv_set(tmp_path, text)
    for name in ("a.jpg", "b.jpg"):
        image_file(tmp_path / name)
    index = read_dataset(file, "csv")
    assert index.classes.names == ("object",)
    assert [r.boxes_xyxy_px.tolist() for r in index.splits["train"]] == [[[1, 2, 11, 10]], []]
    assert faults_of(index) == [("classes-unnamed", "boxes.csv: boxes are called 'object'")]


@pytest.mark.parametrize("size", ["", "40,20", "80,40"])
@pytest.mark.parametrize(
    "text",
    [
        "ImageID,Source,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,x,dog,0.25,0.5,0,1,0\n",
        "image,class,x,y,w,h\na.jpg,dog,0.25,0,0.25,1.0\n",
    ],
)
def test_fractions_of_the_image(tmp_path: Path, text: str, size: str) -> None:
    if size:
        header, row = text.splitlines()
        text = f"{header},image_width,image_height\n{row},{size}\n"
    index = read_dataset(csv_set(tmp_path, text), "csv")
    (record,) = index.splits["train"]
    assert record.boxes_xyxy_px.tolist() == [[10, 0, 20, 20]] and record.areas.tolist() == [200]
    kinds = [kind for kind, _ in faults_of(index)]
    assert kinds == ["boxes-in-fractions", *(["other-size"] if size == "80,40" else [])]


def test_tables_of_automl(tmp_path: Path) -> None:
    rows = [
        "TRAIN,gs://bucket/a.jpg,dog,0.25,0,,,0.5,1,,",
        "VALIDATION,gs://bucket/b.jpg,cat,0.25,0,,,0.5,1,,",
        "UNASSIGNED,gs://bucket/c.jpg,,,,,,,,,",
    ]
    image_file(tmp_path / "c.jpg")
    index = read_dataset(csv_set(tmp_path, "\n".join(rows)), "csv")
    boxes = {s: [r.boxes_xyxy_px.tolist() for r in rs] for s, rs in index.splits.items()}
    assert boxes == {"train": [[[10, 0, 20, 20]], []], "val": [[[10, 0, 20, 20]]]}
    assert faults_of(index) == [("boxes-in-fractions", "boxes.csv")]  # once for both splits


def test_boxes_of_one_pixel_are_no_fractions(tmp_path: Path) -> None:
    index = read_dataset(
        csv_set(tmp_path, "filename,class,x1,y1,x2,y2\na.jpg,dog,0,0,1,1.0\n"), "csv"
    )
    assert index.splits["train"][0].boxes_xyxy_px.tolist() == [[0, 0, 1, 1]]
    assert index.warnings == ()


@pytest.mark.parametrize(
    ("table", "image", "split"),
    [
        ("_annotations.csv", "a.jpg", "train"),
        ("train/_annotations.csv", "train/a.jpg", "train"),
        ("valid/_annotations.csv", "valid/a.jpg", "val"),
        ("test_labels.csv", "images/test/a.jpg", "test"),
        ("train.csv", "train/a.jpg", "train"),
        ("annotations/val.csv", "images/a.jpg", "val"),
        ("labels/val.csv", "images/val/a.jpg", "val"),
        ("labels.tsv", "JPEGImages/a.jpg", "train"),
        ("csv/train.csv", "images/a.jpg", "train"),
    ],
)
def test_layouts(tmp_path: Path, table: str, image: str, split: str) -> None:
    file = text_file(tmp_path / table, TABLE)
    image_file(tmp_path / image)
    text_file(tmp_path / "classes.csv", "dog,0\n")
    for path in (tmp_path, file):
        index = read_dataset(path, "csv")
        assert index.root == path and index.warnings == ()
        assert {s: [r.path for r in rs] for s, rs in index.splits.items()} == {
            split: [tmp_path / image]
        }


def test_a_table_in_each_split_folder(tmp_path: Path) -> None:
    for folder in ("train", "valid"):
        text_file(tmp_path / folder / "labels.csv", TABLE)
        image_file(tmp_path / folder / "a.jpg")
    index = load_dataset(tmp_path)
    assert {s: [r.path for r in rs] for s, rs in index.splits.items()} == {
        "train": [tmp_path / "train/a.jpg"], "val": [tmp_path / "valid/a.jpg"],
    }  # fmt: skip


def test_tables_of_several_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        text_file(tmp_path / f"{split}.csv", TABLE)
    image_file(tmp_path / "images/a.jpg")
    assert list(read_dataset(tmp_path, "csv").splits) == ["train", "test"]
    text_file(tmp_path / "train_more.csv", TABLE)
    with pytest.raises(DataError, match=r"both train\.csv and train_more\.csv are a train split"):
        read_dataset(tmp_path, "csv")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "none"),
        ("x" * 200_000, "none"),
        ("filename,xmin,ymin\n", "filename, xmin, ymin"),
    ],
)
def test_unknown_columns_are_named(tmp_path: Path, text: str, found: str) -> None:
    index = read_dataset(csv_set(tmp_path, text), "csv")
    ((kind, place),) = faults_of(index)
    expected = f"boxes.csv line 1: the columns are {found}, expected those of an image and a box"
    assert kind == "malformed-file" and place.startswith(expected)
    assert index.classes == ClassMap((), ()) and not index.splits
    with pytest.raises(DataError, match=r"boxes\.csv line 1: the columns are"):
        load_dataset(tmp_path / "boxes.csv")


MALFORMED_ROWS = [
    ("b.jpg,cat,1,2,3", "5 fields, expected 6"),
    ("b.jpg,cat,1,two,3,4", "ymin is 'two', expected a number of pixels"),
    ("b.jpg,,1,2,3,4", "the box has no class"),
    ("b.jpg,dog,,,,", "the class is 'dog', but the box is empty"),
    (",cat,1,2,3,4", "the image's name is empty"),
    ('"b.jpg,cat,1,2,3,4', "a field spans several lines"),
    ("b.jpg,cat,1,2,3,4,5", "7 fields, expected 6"),
    ("b.jpg,cat,1,2,inf,4", "xmax is 'inf', expected a number of pixels"),
    ("b.jpg,cat,1,2,,4", "xmax is '', expected a number of pixels"),
    ('b.jpg,"cat,1,2,3,4', "a field spans several lines"),
    ('b.jpg,cat,1,2,3,"4', "a field spans several lines"),
    (f"b.jpg,{'x' * 140_000},1,2,3,4", "field larger than field limit (131072)"),
]


@pytest.mark.parametrize(("row", "found"), MALFORMED_ROWS)
def test_a_malformed_row_leaves_the_others(tmp_path: Path, row: str, found: str) -> None:
    text = TABLE + f"{row}\na.jpg,dog,3,4,5,6\nc.jpg,dog,5,6,7,8\n"
    image_file(tmp_path / "c.jpg")
    index = read_dataset(csv_set(tmp_path, text), "csv")
    (kind, place), *lost = faults_of(index)
    assert kind == "malformed-label" and place.startswith(f"boxes.csv line 3: {found}")
    # Without its only label, the image would teach that nothing is on it.
    assert [kind for kind, _ in lost] in ([], ["labels-lost"])
    boxes = {r.path.name: r.boxes_xyxy_px.tolist() for r in index.splits["train"]}
    assert boxes == {"a.jpg": [[1.5, 2, 10, 20], [3, 4, 5, 6]], "c.jpg": [[5, 6, 7, 8]]}
    assert index.classes.names == ("dog",)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('image,bbox\na.jpg,"[1, 2, 3]"\n', "line 2: bbox is '[1, 2, 3]', expected four numbers"),
        ("image,bbox\na.jpg,big\n", "line 2: bbox is 'big', expected four numbers"),
        ("b.jpg,1,2,3,4,cat\na.jpg,1,2,x,4,cat\n", "line 2: field 4 is 'x', expected a number"),
        (
            "filename,class,x,y,w,h,split\na.jpg,cat,1,2,3,4,often\n",
            "line 2: the split is 'often', expected train, val or test",
        ),
    ],
)
def test_malformed_rows_of_other_tables(tmp_path: Path, text: str, place: str) -> None:
    index = read_dataset(csv_set(tmp_path, text), "csv")
    (found,) = (place for kind, place in faults_of(index) if kind == "malformed-label")
    assert found.startswith(f"boxes.csv {place}")


def test_six_malformed_rows_in_three_tables_are_all_listed(tmp_path: Path) -> None:
    """A data set has one table per split, so each has two of the six."""
    expected: dict[str, str] = {}
    for i, split in enumerate(("train", "val", "test")):
        (row, found), (other, also_found) = MALFORMED_ROWS[2 * i : 2 * i + 2]
        good = "a.jpg,dog,3,4,5,6\n"
        text_file(tmp_path / f"{split}.csv", f"{TABLE}{row}\n{good}{other}\n{good}")
        expected |= {f"{split}.csv line 3": found, f"{split}.csv line 5": also_found}
    for name in ("a.jpg", "b.jpg"):
        image_file(tmp_path / "images" / name)
    index = read_dataset(tmp_path, "csv")
    faults = [(kind, place) for kind, place in faults_of(index) if kind != "labels-lost"]
    assert [kind for kind, _ in faults] == ["malformed-label"] * 6
    found_at = {place.split(": ", 1)[0]: place.split(": ", 1)[1] for _, place in faults}
    assert found_at.keys() == expected.keys()
    assert all(found_at[place].startswith(found) for place, found in expected.items())
    for records in index.splits.values():
        boxes = {record.path.name: len(record.boxes_xyxy_px) for record in records}
        assert boxes == {"a.jpg": 3}
    findings = {finding.kind: finding.count for finding in quick_findings(index)}
    assert findings["malformed-label"] == 6


SIZED = "filename,class,x,y,w,h,width,height\n"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a.jpg,cat,1,2,3,4,0,20\n", "line 2: size 0x20, expected at least one pixel"),
        ("a.jpg,cat,1,2,3,4,40,tall\n", "line 2: height is 'tall', expected a number of pixels"),
        (
            "a.jpg,cat,1,2,3,4,40,20\na.jpg,cat,1,2,3,4,80,40\n",
            "line 3: the size of a.jpg is 80x40 here and 40x20 at ",
        ),
    ],
)
def test_a_malformed_size_is_ignored(tmp_path: Path, text: str, place: str) -> None:
    index = read_dataset(csv_set(tmp_path, SIZED + text), "csv")
    ((kind, found),) = faults_of(index)
    assert kind == "malformed-size" and found.startswith(f"boxes.csv {place}")
    boxes = index.splits["train"][0].boxes_xyxy_px.tolist()
    assert boxes == [[1, 2, 4, 6]] * text.count("\n")


def test_an_empty_size_beside_a_stated_one_is_no_fault(tmp_path: Path) -> None:
    text = SIZED + "a.jpg,cat,2,4,6,8,,\na.jpg,cat,2,4,6,8,80,40\n"
    index = read_dataset(csv_set(tmp_path, text), "csv")
    assert [kind for kind, _ in faults_of(index)] == ["other-size"]
    assert index.splits["train"][0].boxes_xyxy_px.tolist() == [[1, 2, 4, 6]] * 2


def test_tables_without_any_box_or_image(tmp_path: Path) -> None:
    header = TABLE.splitlines()[0]
    index = read_dataset(csv_set(tmp_path, f"{header}\na.jpg,,,,,\n"), "csv")
    assert index.classes == ClassMap((), ()) and len(index.splits["train"]) == 1
    with pytest.raises(DataError, match="there are no labels, so no class is known"):
        load_dataset(tmp_path / "boxes.csv")
    file = csv_set(tmp_path, f"{header}\nx.jpg,dog,1,2,3,4\n")
    with pytest.raises(DataError, match=r"none of its 1 images was found, e\.g\. x\.jpg"):
        load_dataset(file, "csv")


def test_text_that_is_not_utf8_and_nothing_there(tmp_path: Path) -> None:
    csv_set(tmp_path).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"boxes\.csv: cannot be read as text") as caught:
        load_dataset(tmp_path / "boxes.csv", "csv")
    assert "save it as UTF-8" in caught.value.message
    with pytest.raises(DataError, match="no CSV data set found"):
        read_dataset(tmp_path, "csv")


def test_a_table_that_cannot_be_read_leaves_the_others(tmp_path: Path) -> None:
    for folder in ("train", "valid", "test"):
        text_file(tmp_path / folder / "_annotations.csv", TABLE)
        image_file(tmp_path / folder / "a.jpg")
    (tmp_path / "valid/_annotations.csv").write_bytes(TABLE.encode() + b"\xff.jpg,,,,,\n")
    text_file(tmp_path / "test/_annotations.csv", "a,b\n1,2\n")
    index = load_dataset(tmp_path, val_split=0)
    assert {split: len(records) for split, records in index.splits.items()} == {"train": 1}
    assert [(kind, place.partition(" ")[0]) for kind, place in faults_of(index)] == [
        ("malformed-file", "valid/_annotations.csv:"),
        ("malformed-file", "test/_annotations.csv"),
    ]


def test_image_ids_are_unique_over_the_tables_of_a_split(tmp_path: Path) -> None:
    header, row = f"{TABLE.splitlines()[0]},split", "dog,1,2,3,4,train"
    text_file(tmp_path / "train.csv", f"{header}\ngone.jpg,{row}\na.jpg,{row}\n")
    text_file(tmp_path / "val.csv", f"{header}\nb.jpg,{row}\n")
    for name in ("a.jpg", "b.jpg"):
        image_file(tmp_path / name)
    records = read_dataset(tmp_path, "csv").splits["train"]
    assert [(r.image_id, r.path.name) for r in records] == [(2, "a.jpg"), (3, "b.jpg")]


def test_repairs_are_noted_with_their_line(tmp_path: Path) -> None:
    text = (
        "filename,width,height,class,xmin,ymin,xmax,ymax\n"
        "a.jpg,40,20,dog,-5,0,20,20\n"
        "a.jpg,40,20,dog,9,9,9,12\n"
        "b.jpg,80,40,dog,20,10,40,20\n"
        "gone.jpg,40,20,dog,1,2,3,4\n"
    )
    index = read_dataset(csv_set(tmp_path, text), "csv")
    boxes = [record.boxes_xyxy_px.tolist() for record in index.splits["train"]]
    assert boxes == [[[0, 0, 20, 20]], [[10, 5, 20, 10]]]
    assert [(kind, place.partition(":")[0]) for kind, place in faults_of(index)] == [
        ("box-outside", "boxes.csv line 2"),
        ("box-degenerate", "boxes.csv line 3"),
        ("other-size", "boxes.csv line 4"),
        ("missing-image", "boxes.csv line 5"),
    ]


def test_written_table(tmp_path: Path) -> None:
    path = image_file(tmp_path / "a b.jpg")
    record = record_of(path, (40, 20), [[0.1, 0, 10, 12.25], [0, 0, 40, 20]], [1, 0])
    empty = record_of(image_file(tmp_path / "c.jpg"), (40, 20), image_id=2)
    classes = ClassMap.from_names(['a, "b"', "dog"])
    index = DatasetIndex(tmp_path, "coco", classes, {"train": (record, empty), "val": (record,)})
    assert write_csv(index, tmp_path / "out") == []
    assert (tmp_path / "out/annotations.csv").read_text() == (
        "filename,width,height,class,xmin,ymin,xmax,ymax,split\n"
        "images/train/a b.jpg,40,20,dog,0.1,0,10,12.25,train\n"
        'images/train/a b.jpg,40,20,"a, ""b""",0,0,40,20,train\n'
        "images/train/c.jpg,40,20,,,,,,train\n"
        "images/val/a b.jpg,40,20,dog,0.1,0,10,12.25,val\n"
        'images/val/a b.jpg,40,20,"a, ""b""",0,0,40,20,val\n'
    )
    after = read_dataset(tmp_path / "out", "csv")
    assert after.classes == classes and {s: len(r) for s, r in after.splits.items()} == {
        "train": 2,
        "val": 1,
    }


def test_what_csv_cannot_hold_is_listed(tmp_path: Path) -> None:
    path = image_file(tmp_path / "a.jpg")
    record = record_of(
        path, (40, 20), [[0, 0, 10, 10], [0, 0, 40, 20]], [0, 1], 17,
        is_crowd=[False, True], areas=[55.0, None], flags=[{"difficult"}, set()],
    )  # fmt: skip
    index = DatasetIndex(tmp_path, "coco", ClassMap(("cat", "dog"), (3, 8)), {"train": (record,)})
    crowd, unused, ids, images, areas, flags = save_dataset(index, tmp_path / "out", "csv")
    assert crowd == "1 crowd box left out: CSV cannot mark crowds"
    assert unused == "classes without boxes are lost (dog): CSV knows classes by their boxes"
    assert ids == "the class ids (3) are lost: CSV knows classes by name, in sorted order"
    assert images == "train: image ids are lost, CSV knows images by name"
    assert areas.startswith("areas of 1 box are lost")
    assert flags == "the flag 'difficult' of 1 box is lost: CSV has no place for it"
    for name in ("coco", "yolo"):
        lost = save_dataset(index, tmp_path / name, name)
        assert any("'difficult'" in sentence for sentence in lost)


def test_sets_that_cannot_be_written(tmp_path: Path) -> None:
    index = read_dataset(csv_set(tmp_path / "in"), "csv")
    text_file(tmp_path / "out", "a file where the folder should be")
    with pytest.raises(DataError, match="out: cannot be written"):
        save_dataset(index, tmp_path / "out", "csv")
    record = record_of(tmp_path / "in/a.jpg", (40, 20))
    empty = DatasetIndex(tmp_path, "coco", index.classes, {"train": (record,)})
    with pytest.raises(DataError, match="there are no boxes, so CSV could not name the classes"):
        write_csv(empty, tmp_path / "new")
