"""Every kind of output of `dino predict`, read back by something else than what wrote it."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from dino_core.detections import ClassMap
from dino_core.errors import ConfigError, DataError, DinoError
from dino_core.inference.outputs.previous import read_finished
from dino_core.inference.outputs.table import OUTPUTS, check_outputs
from dino_core.inference.outputs.writers import Writers
from dino_core.inference.prediction import Prediction, failed
from dino_core.inference.resolve import SourceItem
from dino_core.inference.video import probe_video, read_video
from dino_core.processing.preprocess import load_image

DiskFull = Callable[[int], AbstractContextManager[None]]

CLASSES = ClassMap(("", "dog", "größe/x"), (0, 18, 90))


def prediction(source: str = "in/a.jpg", **changes: Any) -> Prediction:
    base = Prediction(
        boxes_xyxy_px=np.array([[10, 20, 50, 80], [0, 0, 100, 100]], np.float32),
        scores=np.array([0.9, 0.5], np.float32),
        class_ids=np.array([18, 90]),
        labels=["dog", "größe/x"],
        width=200,
        height=100,
        source=source,
        name=Path(source).name,
        model="m",
        image=np.full((100, 200, 3), 77, np.uint8),
    )
    return replace(base, **changes)


def empty(source: str) -> Prediction:
    none = {"boxes_xyxy_px": np.zeros((0, 4), np.float32), "scores": np.zeros(0, np.float32)}
    return prediction(source, **none, class_ids=np.zeros(0, np.int64), labels=[])


def save(out: Path, kinds: list[str], *predictions: Prediction, **options: Any) -> None:
    with Writers(kinds, out, CLASSES, **options) as writers:
        for one in predictions:
            writers.add(one)


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


BAD = failed("in/bad.jpg", "bad.jpg", "m", "in/bad.jpg: the file is empty")


def test_all_kinds_together(tmp_path: Path) -> None:
    save(tmp_path, list(OUTPUTS), prediction(), BAD, empty("in/b.jpg"))
    assert files(tmp_path) == [
        "crops/dog/a_0.jpg",
        "crops/größe_x/a_1.jpg",
        "images/a.jpg",
        "images/b.jpg",
        "predictions.coco.json",
        "predictions.csv",
        "predictions.json",
        "predictions.jsonl",
        "voc/a.xml",
        "voc/b.xml",
        "yolo/data.yaml",
        "yolo/labels/a.txt",
        "yolo/labels/b.txt",
    ]
    assert load_image(tmp_path / "crops/dog/a_0.jpg").shape == (60, 40, 3)


def test_json_and_jsonl_hold_the_records(tmp_path: Path) -> None:
    save(tmp_path, ["jsonl", "json"], prediction(), BAD)
    lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert records == [prediction().to_dict(), BAD.to_dict()]
    assert json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8")) == records
    save(tmp_path / "none", ["json"])
    assert json.loads((tmp_path / "none" / "predictions.json").read_text()) == []


def test_coco_is_read_by_pycocotools(tmp_path: Path) -> None:
    save(tmp_path, ["coco"], prediction(), BAD, empty("in/b.jpg"))
    coco = COCO(str(tmp_path / "predictions.coco.json"))
    assert {c["id"]: c["name"] for c in coco.dataset["categories"]} == {18: "dog", 90: "größe/x"}
    assert [i["file_name"] for i in coco.dataset["images"]] == ["in/a.jpg", "in/b.jpg"]
    first, second = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert first["bbox"] == [10, 20, 40, 60] and first["category_id"] == 18
    assert first["score"] == 0.9 and first["area"] == 2400 and second["category_id"] == 90
    assert coco.getAnnIds(imgIds=[2]) == []


def test_yolo(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    save(tmp_path, ["yolo"], prediction(), empty("in/b.jpg"))
    rows = (tmp_path / "yolo/labels/a.txt").read_text().splitlines()
    assert [float(v) for v in rows[0].split()] == [0, 0.15, 0.5, 0.2, 0.6]  # 30/200, 50/100, ...
    assert rows[1].split()[0] == "1"
    assert (tmp_path / "yolo/labels/b.txt").read_text() == ""
    data = yaml.safe_load((tmp_path / "yolo/data.yaml").read_text(encoding="utf-8"))
    assert data["names"] == {0: "dog", 1: "größe/x"}


def test_voc(tmp_path: Path) -> None:
    save(tmp_path, ["voc"], prediction())
    root = ElementTree.parse(tmp_path / "voc/a.xml").getroot()
    assert root.findtext("filename") == "a.jpg" and root.findtext("size/width") == "200"
    box = root.find("object/bndbox")
    assert box is not None
    assert [box.findtext(k) for k in ("xmin", "ymin", "xmax", "ymax")] == ["11", "21", "50", "80"]
    assert [o.findtext("name") for o in root.iter("object")] == ["dog", "größe/x"]


def test_csv(tmp_path: Path) -> None:
    save(tmp_path, ["csv"], prediction("in/a, b.jpg"), BAD)
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert rows[0]["source"] == "in/a, b.jpg" and rows[1]["label"] == "größe/x"
    assert [float(rows[0][k]) for k in ("score", "x1", "y1", "x2", "y2")] == [0.9, 10, 20, 50, 80]


def test_same_names_do_not_overwrite_each_other(tmp_path: Path) -> None:
    save(tmp_path, ["images"], *(prediction(f"{n}/a.jpg") for n in range(3)))
    assert files(tmp_path) == ["images/a-2.jpg", "images/a.jpg", "images/a.jpg.jpg"]


def test_wide_pictures_that_jpeg_cannot_hold(tmp_path: Path) -> None:
    wide = np.zeros((2, 70_000, 3), np.uint8)
    boxes = np.array([[0, 0, 70_000, 2], [69_999.5, 1.5, 70_000, 2]], np.float32)
    one = prediction(image=wide, width=70_000, height=2, boxes_xyxy_px=boxes)
    save(tmp_path, ["images", "crops"], one)
    assert files(tmp_path) == ["crops/dog/a_0.png", "crops/größe_x/a_1.jpg", "images/a.png"]


def test_videos_become_videos(tmp_path: Path) -> None:
    frames = [
        prediction("in/clip.mov", frame=n, time_s=n / 10, fps=10.0, image=image)
        for n, image in enumerate(np.full((6, 100, 500, 3), 77, np.uint8))
    ]
    other = replace(frames[0], source="in/other.mov", name="other.mov")
    save(tmp_path, ["images", "coco", "yolo"], *frames, prediction("in/a.jpg"), other)
    assert files(tmp_path) == [
        "images/a.jpg",
        "predictions.coco.json",
        "videos/clip.mp4",
        "videos/other.mp4",
        "yolo/data.yaml",
        "yolo/labels/a.txt",
        *(f"yolo/labels/clip_00000{n}.txt" for n in range(6)),
        "yolo/labels/other_000000.txt",
    ]
    info = probe_video(tmp_path / "videos/clip.mp4")
    assert info.frames == 6 and info.fps == pytest.approx(10, rel=1e-3)
    first = next(read_video(tmp_path / "videos/clip.mp4")).image
    assert first.shape == (100, 500, 3)
    assert np.abs(first.astype(int) - 77).max() > 50  # something is drawn on it


def test_an_interrupt_keeps_what_was_finished(tmp_path: Path) -> None:
    def run() -> None:
        with Writers(["jsonl", "json"], tmp_path, CLASSES) as writers:
            writers.add(prediction())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert json.loads((tmp_path / "predictions.jsonl").read_text()) == prediction().to_dict()
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 1


def test_an_earlier_run_is_carried_on(tmp_path: Path) -> None:
    items = [SourceItem("image", f"{folder}/a.jpg", "a.jpg") for folder in ("x", "y")]
    frame = prediction("clip.mp4", frame=0)
    save(tmp_path, ["jsonl", "images"], prediction("x/a.jpg"), BAD, frame, items=items)
    previous = read_finished(tmp_path).predictions
    assert [p.source for p in previous] == ["x/a.jpg"]  # neither the failure nor the video
    kinds = ["jsonl", "images", "coco"]
    save(tmp_path, kinds, prediction("y/a.jpg"), items=items, previous=previous)
    assert [p.source for p in read_finished(tmp_path).predictions] == ["x/a.jpg", "y/a.jpg"]
    assert "images/a.jpg" in files(tmp_path) and "images/a.jpg.jpg" in files(tmp_path)
    assert len(json.loads((tmp_path / "predictions.coco.json").read_text())["images"]) == 2
    assert read_finished(tmp_path / "nowhere").predictions == []


def test_a_resumed_run_writes_what_one_run_would_have(tmp_path: Path) -> None:
    both = prediction("x/a.jpg"), empty("y/a.jpg")
    items = [SourceItem("image", p.source, p.name) for p in both]
    save(tmp_path / "once", list(OUTPUTS), *both, items=items)
    save(tmp_path / "twice", list(OUTPUTS), both[0], items=items)
    previous = read_finished(tmp_path / "twice").predictions
    save(tmp_path / "twice", list(OUTPUTS), both[1], items=items, previous=previous)
    assert files(tmp_path / "twice") == files(tmp_path / "once")
    for name in files(tmp_path / "once"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()


@pytest.mark.parametrize("line", ["[1]", "1", "{}", "{", '{"schema": 1, "detections": 3}'])
def test_a_foreign_results_file(tmp_path: Path, line: str) -> None:
    (tmp_path / "predictions.jsonl").write_text(f"{line}\n")
    with pytest.raises(DataError, match="not a result of"):
        read_finished(tmp_path)


def test_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'jsonn'.*did you mean 'json"):
        Writers(["jsonn"], tmp_path, CLASSES)
    with pytest.raises(ConfigError, match=r"known: images, jsonl, .*crops"):
        check_outputs(["xyzxyzxyz"])
    assert check_outputs(["csv", "coco", "csv"]) == ("csv", "coco")


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_full_disk_leaves_no_half_file(
    tmp_path: Path, kind: str, disk_full_after: DiskFull
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)
    label = "dog" * 200  # so that every kind of file is long enough
    classes = ClassMap((label,), (18,))
    one = prediction(image=noise, labels=[label] * 2, class_ids=np.array([18, 18]))
    if kind == "crops":  # the class is the folder's name
        classes, one = CLASSES, prediction(image=noise)
    if kind == "yolo":
        many = np.tile(one.boxes_xyxy_px, (50, 1))
        one = replace(one, boxes_xyxy_px=many, labels=[label] * 100, class_ids=np.full(100, 18))
        one = replace(one, scores=np.ones(100, np.float32))
    with (
        disk_full_after(500),
        pytest.raises(DinoError, match="the disk is full"),
        Writers([kind], tmp_path, classes) as writers,
    ):
        writers.add(one)
    assert files(tmp_path) == []


def test_a_full_disk_while_a_video_is_written(tmp_path: Path, disk_full_after: DiskFull) -> None:
    rng = np.random.default_rng(0)
    frames = [
        prediction("a.mp4", frame=n, time_s=n / 25, fps=25, image=image)
        for n, image in enumerate(rng.integers(0, 256, (40, 200, 400, 3), np.uint8))
    ]
    with disk_full_after(20_000), pytest.raises(DinoError):
        save(tmp_path, ["images"], *frames)
    assert files(tmp_path) == []
