"""Labels as other tools write them; expected are the numbers that the tools mean by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import coco_set, coco_table, image_file, text_file, yolo_set

from dino_core.data.load import load_dataset, read_dataset
from dino_core.data.records import DatasetIndex
from dino_core.data.save import save_dataset

SIZE = (200, 120)
XYXY = [10, 20, 60, 80]


def boxes(index: DatasetIndex, split: str = "train") -> list[list[float]]:
    return [box for record in index.splits[split] for box in record.boxes_xyxy_px.tolist()]


def kinds(index: DatasetIndex) -> list[str]:
    return [fault.kind for fault in index.faults]


# --- classes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "2", "0"], ("0", "2", "10")),
        (["-1", "1.5", "1"], ("-1", "1", "1.5")),
        (["10", "2", "cat"], ("10", "2", "cat")),
    ],
)
@pytest.mark.parametrize("format", ["csv", "voc", "labelme"])
def test_classes_that_are_numbers_sort_as_numbers(
    tmp_path: Path, format: str, labels: list[str], names: tuple[str, ...]
) -> None:
    rows = ["filename,class,xmin,ymin,xmax,ymax"]
    for i, label in enumerate(labels):
        image_file(tmp_path / f"in/{i}.jpg", SIZE)
        rows.append(f"{i}.jpg,{label},10,20,60,80")
    text_file(tmp_path / "in/a.csv", "\n".join(rows))
    index = load_dataset(tmp_path / "in", val_split=0)
    assert index.classes.names == names
    save_dataset(index, tmp_path / "out", format)
    again = load_dataset(tmp_path / "out", val_split=0)
    assert again.classes.names == names
    assert [r.class_indices.tolist() for r in again.splits["train"]] == [
        r.class_indices.tolist() for r in index.splits["train"]
    ]


def test_an_empty_category_name_comes_back(tmp_path: Path) -> None:
    coco_set(
        tmp_path / "in", coco_table(categories=[{"id": 9, "name": ""}, {"id": 4, "name": "cat"}])
    )
    index = read_dataset(tmp_path / "in")
    assert index.classes.names == ("cat", "class_9")
    assert "class-unnamed" in kinds(index)
    for format in ("coco", "yolo", "voc", "csv", "labelme"):
        save_dataset(index, tmp_path / format, format)
        assert "class_9" in read_dataset(tmp_path / format).classes.names


def test_an_empty_yolo_name_that_is_used_is_called_by_its_index(tmp_path: Path) -> None:
    index = read_dataset(yolo_set(tmp_path, yaml="train: images/train\nnames: [cat, '', '']\n"))
    assert index.classes.names == ("cat", "class_1", "")
    assert kinds(index) == ["class-unnamed"]


def test_darknet_labels_beside_the_images_name_the_classes(tmp_path: Path) -> None:
    image_file(tmp_path / "a.jpg")
    text_file(tmp_path / "a.txt", "0 0.5 0.5 0.2 0.2\n")
    text_file(tmp_path / "_darknet.labels", "cat\ndog\n")
    assert read_dataset(tmp_path).classes.names == ("cat", "dog")


# --- names of files ----------------------------------------------------------


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    box = "<bndbox><xmin>11</xmin><ymin>21</ymin><xmax>60</xmax><ymax>80</ymax></bndbox>"
    voc = f"<annotation><object><name>cat</name>{box}</object></annotation>"
    image_file(tmp_path / "voc/JPEGImages/a.JPG", SIZE)
    text_file(tmp_path / "voc/Annotations/a.XML", voc)
    image_file(tmp_path / "csv/a.jpg", SIZE)
    text_file(
        tmp_path / "csv/LABELS.CSV", "filename,class,xmin,ymin,xmax,ymax\na.jpg,cat,10,20,60,80\n"
    )
    coco_set(tmp_path / "coco", coco_table()).rename(tmp_path / "coco/annotations/TRAIN.JSON")
    yolo_set(tmp_path / "yolo")
    for split in ("train", "val"):
        label = tmp_path / f"yolo/labels/{split}/a.txt"
        label.rename(label.with_suffix(".TXT"))
    (tmp_path / "yolo/data.yaml").rename(tmp_path / "yolo/DATA.YAML")
    shape = {"label": "cat", "points": [[10, 20], [60, 80]], "shape_type": "rectangle"}
    image_file(tmp_path / "labelme/a.jpg", SIZE)
    text_file(tmp_path / "labelme/A.JSON", json.dumps({"shapes": [shape], "imagePath": "a.jpg"}))
    for format in ("voc", "csv", "labelme"):
        index = read_dataset(tmp_path / format)
        assert (index.format, boxes(index), kinds(index)[1:]) == (format, [XYXY], [])
    assert read_dataset(tmp_path / "coco").format == "coco"
    assert read_dataset(tmp_path / "yolo").classes.names == ("cat", "dog")
    assert len(boxes(read_dataset(tmp_path / "yolo"))) == 1


@pytest.mark.parametrize("folder", ["labels", "images"])
def test_yolo_labels_named_after_the_whole_file(tmp_path: Path, folder: str) -> None:
    image_file(tmp_path / "images/a.jpg", SIZE)
    text_file(tmp_path / folder / "a.jpg.txt", "0 0.175 0.416666667 0.25 0.5\n")
    index = read_dataset(tmp_path)
    assert np.allclose(boxes(index), [XYXY], atol=1e-3)
    assert kinds(index) == ["classes-unnamed"]


def test_yolo_with_ppm_images(tmp_path: Path) -> None:
    image_file(tmp_path / "images/a.jpg")
    from PIL import Image

    Image.open(tmp_path / "images/a.jpg").save(tmp_path / "images/b.ppm")
    (tmp_path / "images/a.jpg").unlink()
    text_file(tmp_path / "labels/b.txt", "0 0.5 0.5 0.2 0.2\n")
    assert len(boxes(read_dataset(tmp_path))) == 1


# --- COCO --------------------------------------------------------------------

MASK = {"size": [120, 200], "counts": [10 * 120 + 20, 60] + [60, 60] * 49 + [140 * 120 + 40]}


@pytest.mark.parametrize(
    "segmentation",
    [
        [[10, 20, 60, 20, 60, 80, 10, 80]],
        [10, 20, 60, 20, 60, 80, 10, 80],
        ["10", "20", "60", "20", "60", "80", "10", "80"],
        MASK,
        {**MASK, "size": ["120", 200]},
    ],
)
def test_boxes_of_outlines_and_masks(tmp_path: Path, segmentation: Any) -> None:
    entry = {"id": 1, "image_id": 7, "category_id": 9, "segmentation": segmentation, "iscrowd": 1}
    coco_set(tmp_path, coco_table(annotations=[entry], images=[{"id": 7, "file_name": "a.jpg"}]))
    image_file(tmp_path / "images/train/a.jpg", SIZE)
    record = read_dataset(tmp_path).splits["train"][0]
    assert record.boxes_xyxy_px.tolist() == [XYXY]
    assert record.is_crowd.tolist() == [True]


def test_compressed_masks_have_the_box_that_pycocotools_finds() -> None:
    mask = pytest.importorskip("pycocotools.mask")
    from dino_core.data.formats.coco_outlines import box_of_segmentation

    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 60, 2)
        pixels = rng.random((height, width)) < rng.choice([0.02, 0.3, 0.9])
        encoded = mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
        found = box_of_segmentation({**encoded, "counts": encoded["counts"].decode()})
        expected = tuple(mask.toBbox(encoded).tolist())
        assert (found or (0, 0, 0, 0)) == (expected if pixels.any() else (0, 0, 0, 0))


@pytest.mark.parametrize("counts", ["zz\x7f", "", [1, -1], [10**9], None, "~" * 100, [0.5], {}])
def test_masks_that_are_none_have_no_box(counts: Any) -> None:
    from dino_core.data.formats.coco_outlines import box_of_segmentation

    assert box_of_segmentation({"counts": counts, "size": [4, 5]}) is None
    assert box_of_segmentation({"counts": [1, 2], "size": counts}) is None


def test_words_as_annotation_ids(tmp_path: Path) -> None:
    sound = {"image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4]}
    entries = [{**sound, "id": "7f3c-01"}, {**sound, "id": "7f3c-02"}, {**sound, "id": "7f3c-01"}]
    index = read_dataset(coco_set(tmp_path, coco_table(annotations=entries)).parents[1])
    assert len(boxes(index)) == 3
    (fault,) = index.faults
    assert fault.kind == "duplicate-annotation-id" and "annotations[2] (id 7f3c-01)" in fault.place


def coco_of(folder: Path, numbers: list[list[float]]) -> DatasetIndex:
    entries = [
        {"id": i, "image_id": 7, "category_id": 9, "bbox": each} for i, each in enumerate(numbers)
    ]
    images = [{"id": 7, "file_name": "a.jpg", "width": 200, "height": 120}]
    coco_set(folder, coco_table(annotations=entries, images=images))
    image_file(folder / "images/train/a.jpg", SIZE)
    return read_dataset(folder)


def test_coco_boxes_as_corners(tmp_path: Path) -> None:
    corners = [[60, 40, 150, 100], [100, 30, 180, 110], [10, 20, 60, 80]]
    index = coco_of(tmp_path, corners)
    assert boxes(index) == corners
    assert kinds(index) == ["boxes-as-corners"]


def test_coco_boxes_of_which_few_reach_outside_stay(tmp_path: Path) -> None:
    index = coco_of(tmp_path, [[60, 40, 150, 100], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]])
    assert boxes(index)[0] == [60, 40, 200, 120]
    assert kinds(index) == ["box-outside"]


def test_coco_boxes_in_fractions(tmp_path: Path) -> None:
    index = coco_of(tmp_path, [[10 / 200, 20 / 120, 50 / 200, 60 / 120]])
    assert np.allclose(boxes(index), [XYXY], atol=1e-3)
    assert kinds(index) == ["boxes-in-fractions"]


# --- Pascal VOC --------------------------------------------------------------


def voc_of(folder: Path, inside: str, source: str = "") -> DatasetIndex:
    image_file(folder / "JPEGImages/a.jpg", SIZE)
    text = f"<annotation>{source}<object><name>cat</name>{inside}</object></annotation>"
    text_file(folder / "Annotations/a.xml", text)
    return read_dataset(folder)


DECIMALS = "<bndbox><xmin>10.0</xmin><ymin>20.0</ymin><xmax>60.0</xmax><ymax>80.0</ymax></bndbox>"


def test_voc_with_decimals_counts_from_zero(tmp_path: Path) -> None:
    index = voc_of(tmp_path, DECIMALS)
    assert boxes(index) == [XYXY]
    assert kinds(index) == ["corners-from-zero"]


@pytest.mark.parametrize(
    ("inside", "source"),
    [
        (DECIMALS.replace("10.0", "11").replace("20.0", "21"), ""),
        (
            DECIMALS.replace("10.0", "11.0").replace("20.0", "21.0"),
            "<source><database>The VOC2012 Database</database></source>",
        ),
    ],
)
def test_voc_itself_counts_from_one(tmp_path: Path, inside: str, source: str) -> None:
    index = voc_of(tmp_path, inside, source)
    assert boxes(index) == [XYXY] and kinds(index) == []


def test_decimals_that_we_write_come_back(tmp_path: Path) -> None:
    image_file(tmp_path / "in/a.jpg", SIZE)
    row = "a.jpg,cat,10.25,20.5,60.75,80.125\n"
    text_file(tmp_path / "in/a.csv", "filename,class,xmin,ymin,xmax,ymax\n" + row)
    index = load_dataset(tmp_path / "in", val_split=0)
    save_dataset(index, tmp_path / "voc", "voc")
    again = load_dataset(tmp_path / "voc", val_split=0)
    assert boxes(again) == boxes(index) and kinds(again) == []


@pytest.mark.parametrize(
    "polygon",
    [
        "<x1>11</x1><y1>21</y1><x2>60</x2><y2>21</y2><x3>60</x3><y3>80</y3><x4>11</x4><y4>80</y4>",
        "<username>me</username><pt><x>11</x><y>21</y></pt><pt><x>60</x><y>50</y></pt>"
        "<pt><x>30</x><y>80</y></pt>",
    ],
)
def test_voc_polygons_are_boxes(tmp_path: Path, polygon: str) -> None:
    index = voc_of(tmp_path, f"<polygon>{polygon}</polygon>")
    assert boxes(index) == [XYXY] and kinds(index) == ["outline-label"]


def test_a_voc_object_without_box_leaves_the_others(tmp_path: Path) -> None:
    text = DECIMALS + "</object><object><name>dog</name>"
    index = voc_of(tmp_path, text)
    assert boxes(index) == [XYXY] and "malformed-label" in kinds(index)


def test_a_voc_test_list_without_labels(tmp_path: Path) -> None:
    voc_of(tmp_path, DECIMALS)
    for name in ("t", "u"):
        image_file(tmp_path / f"JPEGImages/{name}.jpg", SIZE)
    text_file(tmp_path / "ImageSets/Main/train.txt", "a\n")
    text_file(tmp_path / "ImageSets/Main/test.txt", "t\nu\nu\n")
    index = read_dataset(tmp_path)
    assert [record.path.stem for record in index.splits["test"]] == ["t", "u"]
    assert boxes(index) == [XYXY] and boxes(index, "test") == []
    assert "missing-label" in kinds(index)


def test_voc_lists_of_pairs(tmp_path: Path) -> None:
    box = "<bndbox><xmin>11</xmin><ymin>21</ymin><xmax>60</xmax><ymax>80</ymax></bndbox>"
    for name, split in (("a", "train"), ("c", "valid")):
        image_file(tmp_path / f"images/{name}.jpg", SIZE)
        text = f"<annotation><object><name>cat</name>{box}</object></annotation>"
        text_file(tmp_path / f"annotations/{name}.xml", text)
        text_file(tmp_path / f"{split}.txt", f"./images/{name}.jpg ./annotations/{name}.xml\n")
    index = read_dataset(tmp_path)
    assert (boxes(index), boxes(index, "val"), kinds(index)) == ([XYXY], [XYXY], [])


# --- CSV ---------------------------------------------------------------------


def csv_of(folder: Path, text: str) -> DatasetIndex:
    for name in ("a.jpg", "b.jpg"):
        image_file(folder / name, SIZE)
    return read_dataset(text_file(folder / "train.csv", text).parent)


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg,10,20,60,80,object,200,120\n",
        "image,x0,y0,x1,y1,label\na.jpg,10,20,60,80,object\n",
        "object,10,20,50,60,a.jpg,200,120\n",
    ],
)
def test_columns_of_other_tables(tmp_path: Path, text: str) -> None:
    index = csv_of(tmp_path, text)
    assert boxes(index) == [XYXY] and index.classes.names == ("object",)


def test_groups_of_open_images_are_crowds(tmp_path: Path) -> None:
    header = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n"
    index = csv_of(tmp_path, f"{header}a,cat,0.05,0.3,0.1,0.5,1\na,cat,0.05,0.3,0.1,0.5,0\n")
    assert index.splits["train"][0].is_crowd.tolist() == [True, False]
    assert index.unread == ()


def test_a_class_for_nothing_found_is_no_class(tmp_path: Path) -> None:
    header = "image_id,class_name,x_min,y_min,x_max,y_max\n"
    index = csv_of(tmp_path, f"{header}a,Nodule,10.0,20.0,60.0,80.0\nb,No finding,,,,\n")
    assert index.classes.names == ("Nodule",) and boxes(index) == [XYXY]
    assert [record.path.name for record in index.splits["train"]] == ["a.jpg", "b.jpg"]
    assert kinds(index) == ["class-without-box"]
