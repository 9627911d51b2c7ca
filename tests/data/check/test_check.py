"""Each fault is planted in a clean data set: it is found where it was planted, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dino_core.data.check.findings import CheckReport, Finding
from dino_core.data.check.images import examine_all
from dino_core.data.check.run import check_dataset, image_files, quick_findings
from dino_core.data.fault_kinds import KINDS
from dino_core.data.load import load_dataset
from dino_core.data.records import DatasetIndex
from dino_core.data.save import save_dataset

WIDTH, HEIGHT = 96, 64
LINES = (  # two boxes a class on each image, none tiny, none touching the border
    "0 0.25 0.25 0.3 0.3",
    "1 0.75 0.25 0.3 0.3",
    "0 0.25 0.75 0.3 0.3",
    "1 0.75 0.75 0.3 0.3",
)


def scene(seed: int, size_wh: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """A picture of coarse coloured patches, unlike that of any other seed."""
    patches = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size_wh, Image.Resampling.BICUBIC)


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """6 training and 3 validation images without a fault."""
    root = tmp_path / "yolo"
    for split, seeds in (("train", range(6)), ("val", range(6, 9))):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for seed in seeds:
            scene(seed).save(root / "images" / split / f"{seed}.jpg", quality=90)
            (root / "labels" / split / f"{seed}.txt").write_text("\n".join(LINES) + "\n")
    (root / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"
    )
    return root


@pytest.fixture
def coco(yolo: Path, tmp_path: Path) -> Path:
    """The same as COCO."""
    save_dataset(load_dataset(yolo), tmp_path / "coco", "coco")
    return tmp_path / "coco"


def check(dataset: DatasetIndex | Path, workers: int = 0) -> CheckReport:
    if isinstance(dataset, Path):
        dataset = load_dataset(dataset, val_split=0.0)
    files = image_files(dataset)
    report = check_dataset(dataset, list(examine_all(files, workers)))
    assert report.images_decoded == len(files)
    return report


def only(report: CheckReport, kind: str, count: int = 1) -> Finding:
    """The one finding of a report, of the kind that was planted."""
    assert [(f.kind, f.count) for f in report.findings] == [(kind, count)]
    finding = report.findings[0]
    assert finding.severity == KINDS[kind].severity
    return finding


def names(finding: Finding) -> list[list[str]]:
    return [[f"{p.parent.name}/{p.name}" for p in e.paths] for e in finding.examples]


def edit_coco(root: Path, change: Callable[[dict[str, Any]], None], split: str = "train") -> None:
    file = root / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def write_labels(root: Path, image: str, *lines: str) -> None:
    """Replace the first of an image's lines by `lines`."""
    (root / "labels" / f"{image}.txt").write_text("\n".join([*lines, *LINES[1:]]) + "\n")


def test_clean_data_have_no_findings(yolo: Path, coco: Path) -> None:
    for root in (yolo, coco):
        report = check(root)
        assert report.findings == ()
        assert report.images_decoded == 9
        assert {n: (s.images, s.boxes) for n, s in report.splits.items()} == {
            "train": (6, 24),
            "val": (3, 12),
        }
        assert report.boxes_of_class == {"cat": 18, "dog": 18}


@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_image(yolo: Path, kept: float) -> None:
    file = yolo / "images/train/2.jpg"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    assert names(only(check(yolo), "truncated-image")) == [["train/2.jpg"]]


def test_image_that_ends_in_zeros(yolo: Path) -> None:
    file = yolo / "images/train/2.jpg"
    data = file.read_bytes()
    half = len(data) * 3 // 4
    file.write_bytes(data[:half] + bytes(len(data) - half))
    assert names(only(check(yolo), "truncated-image")) == [["train/2.jpg"]]


def test_padding_after_the_end_is_no_truncation(yolo: Path) -> None:
    file = yolo / "images/train/2.jpg"
    file.write_bytes(file.read_bytes() + bytes(500))
    assert check(yolo).findings == ()


def test_truncated_png(yolo: Path) -> None:
    (yolo / "images/train/2.jpg").unlink()
    file = yolo / "images/train/2.png"
    scene(2).save(file)
    assert check(yolo).findings == ()
    file.write_bytes(file.read_bytes()[:-3000])
    assert names(only(check(yolo), "truncated-image")) == [["train/2.png"]]


def test_unreadable_images_by_header_and_by_content(yolo: Path) -> None:
    (yolo / "images/train/1.jpg").write_bytes(b"no picture")
    (yolo / "images/train/2.jpg").unlink()
    file = yolo / "images/train/2.webp"
    scene(2).save(file, lossless=True)
    data = file.read_bytes()
    file.write_bytes(data[:30] + bytes(len(data) - 30))  # nothing but the header is left
    finding = only(check(yolo), "unreadable-image", 2)
    assert names(finding) == [["train/1.jpg"], ["train/2.webp"]]
    assert finding.message == "2 files are not readable images"


def test_missing_image(coco: Path) -> None:
    (coco / "images/train/3.jpg").unlink()
    finding = only(check(coco), "missing-image")
    assert "3.jpg" in finding.examples[0].place


def test_exif_rotated_image_is_shown_with_its_boxes(yolo: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(1, (HEIGHT, WIDTH)).save(yolo / "images/train/1.jpg", exif=exif)
    finding = only(check(yolo), "exif-rotated")
    assert names(finding) == [["train/1.jpg"]]
    assert len(finding.examples[0].boxes) == 4


@pytest.mark.parametrize(
    ("copy", "kind"),
    [
        ("train/10.jpg", "duplicate-image"),
        ("val/10.jpg", "duplicate-across-splits"),
    ],
)
def test_copies_of_an_image(yolo: Path, copy: str, kind: str) -> None:
    shutil.copy(yolo / "images/train/4.jpg", yolo / "images" / copy)
    write_labels(yolo, copy[:-4], LINES[0])
    finding = only(check(yolo), kind)
    assert [set(group) for group in names(finding)] == [{"train/4.jpg", copy}]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("how", ["compressed", "halved", "stretched", "png", "brighter", "turned"])
def test_near_copies_of_an_image(yolo: Path, how: str, split: str) -> None:
    image = Image.open(yolo / "images/train/4.jpg")
    copy = yolo / "images" / split / "90.jpg"
    kinds = ["near-duplicate-image" if split == "train" else "near-duplicate-across-splits"]
    if how == "compressed":
        image.save(copy, quality=30)
    elif how == "halved":
        image.resize((WIDTH // 2, HEIGHT // 2)).save(copy)
    elif how == "stretched":
        image.resize((128, 128)).save(copy)
    elif how == "png":
        copy = copy.with_suffix(".png")
        image.save(copy)
    elif how == "brighter":
        image.point(lambda value: min(255, round(value * 1.06))).save(copy)
    else:
        exif = Image.Exif()
        exif[0x0112] = 3
        image.transpose(Image.Transpose.ROTATE_180).save(copy, exif=exif)
        kinds = sorted([*kinds, "exif-rotated"])
    write_labels(yolo, f"{split}/90", LINES[0])
    report = check(yolo)
    assert sorted(f.kind for f in report.findings) == kinds
    near = next(f for f in report.findings if f.kind.startswith("near"))
    assert names(near) == [[f"{split}/{copy.name}", "train/4.jpg"]]


def test_blank_images_are_not_called_alike(yolo: Path) -> None:
    for seed, level in ((0, 120), (1, 128)):
        Image.new("RGB", (WIDTH, HEIGHT), (level,) * 3).save(yolo / f"images/train/{seed}.jpg")
    assert check(yolo).findings == ()


def test_missing_empty_and_stray_labels(yolo: Path) -> None:
    (yolo / "labels/train/1.txt").unlink()
    (yolo / "labels/train/2.txt").write_text("")
    (yolo / "labels/train/stray.txt").write_text(LINES[0])
    found = {f.kind: f for f in check(yolo).findings}
    assert found.keys() == {
        "missing-label", "image-without-boxes", "label-without-image", "class-imbalance",
    }  # fmt: skip
    assert names(found["missing-label"]) == [["train/1.jpg"]]
    assert names(found["image-without-boxes"]) == [["train/2.jpg"]]
    assert "stray.txt" in found["label-without-image"].examples[0].place


@pytest.mark.parametrize(
    ("line", "kind", "box"),
    [
        ("0 0.05 0.25 0.3 0.3", "box-outside", (-9.6, 6.4, 19.2, 25.6)),
        ("0 0.5 0.5 0 0.3", "box-degenerate", (48, 22.4, 48, 41.6)),
        ("0 1.5 0.5 0.2 0.3", "box-degenerate", (134.4, 22.4, 153.6, 41.6)),
        ("0 0.5 0.5 1 1", "box-whole-image", (0, 0, 96, 64)),
        ("0 0.5 0.5 0.01 0.3", "box-tiny", (47.52, 22.4, 48.48, 41.6)),
    ],
)
def test_a_box_at_fault(
    yolo: Path, line: str, kind: str, box: tuple[float, float, float, float]
) -> None:
    write_labels(yolo, "train/3", line)
    finding = only(check(yolo), kind)
    assert names(finding) == [["train/3.jpg"]]
    assert finding.examples[0].boxes[0].xyxy_px == pytest.approx(box, abs=1e-3)


def test_a_clipped_coco_box_is_found_in_its_image(coco: Path) -> None:
    def widen(content: dict[str, Any]) -> None:
        content["annotations"][9]["bbox"] = [50.0, 5.0, 70.0, 20.0]

    edit_coco(coco, widen)
    finding = only(check(coco), "box-outside")
    assert names(finding) == [["train/2.jpg"]]
    assert finding.examples[0].boxes[0].xyxy_px == (50, 5, 120, 25)


def test_several_boxes_outside_are_listed_each_with_its_image(yolo: Path) -> None:
    for image in ("train/1", "train/3", "val/7"):
        write_labels(yolo, image, "0 0.05 0.25 0.3 0.3")
    finding = only(check(yolo), "box-outside", 3)
    assert finding.message == "3 boxes reach outside their images and are clipped"
    assert names(finding) == [["train/1.jpg"], ["train/3.jpg"], ["val/7.jpg"]]


def test_boxes_at_one_place(yolo: Path) -> None:
    write_labels(yolo, "train/1", LINES[0], "0 0.251 0.25 0.3 0.3")
    write_labels(yolo, "train/2", LINES[0], "1 0.25 0.25 0.3 0.3")
    report = check(yolo)
    assert [(f.kind, f.count, names(f)) for f in report.findings] == [
        ("box-duplicate", 1, [["train/1.jpg"]]),
        ("box-two-classes", 1, [["train/2.jpg"]]),
    ]
    assert report.findings[1].examples[0].boxes[0].label == "cat and dog"


def test_neighbouring_boxes_are_not_duplicates(yolo: Path) -> None:
    write_labels(yolo, "train/1", LINES[0], "0 0.28 0.25 0.3 0.3")  # IoU 0.82
    assert check(yolo).findings == ()


def test_class_without_boxes_and_rare_class(yolo: Path) -> None:
    text = (yolo / "data.yaml").read_text()
    (yolo / "data.yaml").write_text(text.replace("dog]", "dog, emu, fox]"))
    write_labels(yolo, "train/0", "2 0.25 0.25 0.3 0.3")
    write_labels(yolo, "val/6", "3 0.25 0.25 0.3 0.3")
    found = {f.kind: [e.place for e in f.examples] for f in check(yolo).findings}
    assert found == {
        "class-without-boxes": ["fox: no boxes in train, but 1 in val"],
        "class-imbalance": ["emu: 1 of 24 boxes in train"],
    }


def test_split_without_boxes(coco: Path) -> None:
    edit_coco(coco, lambda content: content.update(annotations=[]), "val")
    finding = only(check(coco), "no-boxes")
    assert finding.examples[0].place == "val: 3 images, no boxes"


def test_wrong_shape_and_other_size(coco: Path) -> None:
    def restate(content: dict[str, Any]) -> None:
        content["images"][1].update(width=64, height=96)
        content["images"][2].update(width=192, height=128)

    edit_coco(coco, restate)
    found = {f.kind: names(f) for f in check(coco).findings}
    assert found == {"wrong-shape": [["train/1.jpg"]], "other-size": [["train/2.jpg"]]}


def test_file_listed_twice(coco: Path) -> None:
    def repeat(content: dict[str, Any]) -> None:
        content["images"].append({**content["images"][0], "id": 99})
        content["annotations"] += [
            {**a, "id": 1000 + a["id"], "image_id": 99}
            for a in content["annotations"]
            if a["image_id"] == content["images"][0]["id"]
        ]

    edit_coco(coco, repeat)
    finding = only(check(coco), "image-listed-twice")
    assert finding.examples[0].place.endswith("0.jpg: 2 times in train")


def test_voc_image_without_annotation_and_annotation_in_no_list(yolo: Path, tmp_path: Path) -> None:
    root = tmp_path / "voc"
    save_dataset(load_dataset(yolo), root, "voc")
    assert check(root).findings == ()
    (root / "Annotations" / "7.xml").rename(root / "Annotations" / "elsewhere.xml")
    found = {f.kind: f.examples[0].place for f in check(root).findings}
    assert found.keys() == {"missing-label", "image-not-listed"}
    assert found["missing-label"].endswith(": 7")
    assert found["image-not-listed"].endswith("elsewhere.xml: in no list of images")


def test_image_in_no_split(coco: Path) -> None:
    scene(77).save(coco / "images/train/forgotten.png")
    assert names(only(check(coco), "image-not-listed")) == [["train/forgotten.png"]]


def test_ids_used_twice_in_an_index_of_ones_own(yolo: Path) -> None:
    index = load_dataset(yolo)
    first, second, *rest = index.splits["train"]
    records = (first, replace(second, image_id=first.image_id), *rest)
    index = replace(index, splits={**index.splits, "train": records})
    assert names(only(check(index), "duplicate-id")) == [["train/0.jpg", "train/1.jpg"]]


def test_crowds_are_no_boxes_at_fault(coco: Path) -> None:
    def crowd(content: dict[str, Any]) -> None:
        first = content["annotations"][0]
        extra = {**first, "id": 1000, "bbox": [0, 0, WIDTH, HEIGHT], "iscrowd": 1}
        content["annotations"] += [extra, {**extra, "id": 1001}]

    edit_coco(coco, crowd)
    assert check(coco).findings == ()


def test_outlines_are_notes(yolo: Path) -> None:
    write_labels(yolo, "train/1", "0 0.1 0.1 0.4 0.1 0.4 0.4 0.1 0.4")
    assert only(check(yolo), "outline-label").severity == "note"


def test_the_box_outside_is_shown_on_its_own_image(tmp_path: Path) -> None:
    """Image 1's box is what image 2's looks like once clipped: only the record tells them apart."""
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 40} for i in (1, 2)]
    boxes = {1: [0, 0, 10, 10], 2: [-5, -5, 15, 15]}
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": box} for i, box in boxes.items()
    ]
    (tmp_path / "images/train").mkdir(parents=True)
    for seed in (1, 2):
        scene(seed, (40, 40)).save(tmp_path / f"images/train/{seed}.jpg")
    table = {"images": images, "annotations": annotations,
             "categories": [{"id": 1, "name": "a"}]}  # fmt: skip
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train.json").write_text(json.dumps(table))
    outside = [f for f in check(tmp_path).findings if f.kind == "box-outside"]
    assert [names(f) for f in outside] == [[["train/2.jpg"]]]


def test_quick_findings_open_no_image(yolo: Path) -> None:
    write_labels(yolo, "train/3", "0 0.5 0.5 1 1")
    (yolo / "labels/val/7.txt").unlink()
    index = load_dataset(yolo)
    expected = [f for f in check(index).findings if f.kind in ("missing-label", "box-whole-image")]
    for record in index.splits["train"]:
        os.truncate(record.path, 0)
    assert list(quick_findings(index)) == expected
    assert len(expected) == 2


def test_gravest_findings_come_first_and_counts_add_up(yolo: Path) -> None:
    (yolo / "images/train/1.jpg").write_bytes(b"")
    write_labels(yolo, "train/2", LINES[0], "0 0.5 0.5 0.01 0.3", "0 0.5 0.5 1 1")
    report = check(yolo)
    assert [f.severity for f in report.findings] == ["error", "warning", "note"]
    assert [report.count(s) for s in ("error", "warning", "note")] == [1, 1, 1]


def test_pool_and_one_process_agree(yolo: Path) -> None:
    (yolo / "images/train/1.jpg").write_bytes((yolo / "images/train/1.jpg").read_bytes()[:700])
    shutil.copy(yolo / "images/train/4.jpg", yolo / "images/val/40.jpg")
    Image.open(yolo / "images/train/3.jpg").save(yolo / "images/train/30.png")
    write_labels(yolo, "train/3", "0 0.05 0.25 0.3 0.3")
    alone, pool = check(yolo), check(yolo, workers=2)
    assert alone == pool
    assert len(alone.findings) >= 4
    json.dumps(alone.to_dict())
