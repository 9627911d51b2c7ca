"""Labels made on the stored pixels of a photo that its EXIF tag turns, against Pillow's turning."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import image_file, text_file
from PIL import ExifTags, Image, ImageOps

from dino_core.data.formats.labeled import turned_box
from dino_core.data.load import load_dataset

STORED_WH = (200, 120)
XYWH = (10, 20, 50, 60)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_box_turns_as_its_pixels_do(orientation: int) -> None:
    pixels = np.zeros((12, 20), np.uint8)
    pixels[2:5, 3:9] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture = Image.fromarray(pixels)
    picture.info["exif"] = exif.tobytes()
    rows, columns = np.nonzero(np.asarray(ImageOps.exif_transpose(picture)))
    expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert turned_box((3, 2, 9, 5), (20, 12), orientation) == expected


def coco(folder: Path, size_wh: tuple[int, int]) -> None:
    table = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": size_wh[0], "height": size_wh[1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": XYWH}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    text_file(folder / "train.json", json.dumps(table))


def voc(folder: Path, size_wh: tuple[int, int]) -> None:
    box = "<xmin>11</xmin><ymin>21</ymin><xmax>60</xmax><ymax>80</ymax>"
    size = f"<size><width>{size_wh[0]}</width><height>{size_wh[1]}</height></size>"
    labeled = f"<object><name>cat</name><bndbox>{box}</bndbox></object>"
    text_file(folder / "a.xml", f"<annotation>{size}{labeled}</annotation>")


def csv(folder: Path, size_wh: tuple[int, int]) -> None:
    header = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    text_file(folder / "a.csv", f"{header}a.jpg,{size_wh[0]},{size_wh[1]},cat,10,20,60,80\n")


def csv_in_fractions(folder: Path, size_wh: tuple[int, int]) -> None:
    w, h = size_wh
    header = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    text_file(folder / "a.csv", f"{header}a.jpg,{w},{h},cat,{10 / w},{20 / h},{60 / w},{80 / h}\n")


def labelme(folder: Path, size_wh: tuple[int, int]) -> None:
    shape = {"label": "cat", "points": [[10, 20], [60, 80]], "shape_type": "rectangle"}
    table = {"shapes": [shape], "imagePath": "a.jpg", "imageWidth": size_wh[0],
             "imageHeight": size_wh[1]}  # fmt: skip
    text_file(folder / "a.json", json.dumps(table))


@pytest.mark.parametrize("write", [coco, voc, csv, csv_in_fractions, labelme])
@pytest.mark.parametrize("scale", [1, 2])
def test_boxes_in_the_stored_frame_are_turned(tmp_path: Path, write: object, scale: int) -> None:
    image_file(tmp_path / "a.jpg", (STORED_WH[0] * scale, STORED_WH[1] * scale), orientation=6)
    write(tmp_path, STORED_WH)  # type: ignore[operator]
    index = load_dataset(tmp_path, val_split=0)
    (record,) = index.splits["train"]
    assert (record.width, record.height) == (120 * scale, 200 * scale)
    expected = np.array([[40, 10, 100, 60]]) * scale
    assert np.allclose(record.boxes_xyxy_px, expected, atol=1e-3)
    kinds = {fault.kind for fault in index.faults} - {"boxes-in-fractions"}
    assert kinds == {"boxes-turned"} | ({"other-size"} if scale == 2 else set())


@pytest.mark.parametrize("write", [coco, voc, csv, csv_in_fractions, labelme])
def test_boxes_in_the_upright_frame_stay(tmp_path: Path, write: object) -> None:
    image_file(tmp_path / "a.jpg", STORED_WH, orientation=6)
    write(tmp_path, STORED_WH[::-1])  # type: ignore[operator]
    index = load_dataset(tmp_path, val_split=0)
    boxes = index.splits["train"][0].boxes_xyxy_px
    assert np.allclose(boxes, [[10, 20, 60, 80]], atol=1e-3)
    assert not {"boxes-turned", "wrong-shape"} & {fault.kind for fault in index.faults}


def test_an_image_of_another_shape_is_still_left_out(tmp_path: Path) -> None:
    image_file(tmp_path / "a.jpg", STORED_WH, orientation=6)
    coco(tmp_path, (200, 150))
    assert "wrong-shape" in {f.kind for f in load_dataset_faults(tmp_path)}


def load_dataset_faults(folder: Path) -> tuple:
    from dino_core.data.load import read_dataset

    return read_dataset(folder).faults
