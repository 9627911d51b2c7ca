"""Every format to every other and back: the same boxes, by property tests and real data."""

from __future__ import annotations

import contextlib
import io
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from datasets import record_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dino_core.data.formats.table import FORMATS
from dino_core.data.load import load_dataset
from dino_core.data.records import DatasetIndex
from dino_core.data.save import save_dataset
from dino_core.detections import ClassMap

BCCD = Path(__file__).parents[3] / "../shared/data/bccd"
# VOC and CSV write each float32 in full; COCO rounds corner and side to 5 digits, YOLO center and
# side to 9 digits of an image of up to 300 px, and both add them up in float32 (3e-5 at 300).
TOLERANCE_PX = {"voc": 0.0, "csv": 0.0, "labelme": 0.0, "coco": 6e-5, "yolo": 6e-5}

names = (
    st.text(st.characters(blacklist_categories=("Cs", "Cc"), max_codepoint=0x2FF), min_size=1)
    .map(str.strip)
    .filter(bool)
)


@st.composite
def indices(draw: st.DrawFn) -> tuple[DatasetIndex, tuple[int, int]]:
    """A data set of one image with boxes of every class, not yet written, and its size."""
    width, height = draw(st.integers(4, 300)), draw(st.integers(4, 300))
    labels = draw(st.lists(names, min_size=1, max_size=6))
    boxes = []
    for _ in labels:
        x1 = draw(st.floats(0, width - 1, width=32))
        y1 = draw(st.floats(0, height - 1, width=32))
        # At least one box must leave the first pixel, or a CSV table looks like fractions.
        x2 = draw(st.floats(x1 + 0.5, width)) if boxes else width
        boxes.append([x1, y1, x2, draw(st.floats(y1 + 0.5, height))])
    classes = ClassMap.from_names(sorted(set(labels)))
    flags = draw(st.lists(st.sets(st.sampled_from(["difficult", "truncated", "occluded"])),
                          min_size=len(labels), max_size=len(labels)))  # fmt: skip
    class_indices = [classes.names.index(label) for label in labels]
    record = record_of(Path("image.png"), (width, height), boxes, class_indices, flags=flags)
    return DatasetIndex(Path("."), "coco", classes, {"train": (record,)}), (width, height)


def hair_outside() -> tuple[DatasetIndex, tuple[int, int]]:
    """A box that YOLO's rounding moves 4e-9 px out of its image; found by these tests."""
    boxes, size = [[0, 0, 4, 1], [0, 0, 1, 1.498046875]], (4, 4)
    record = record_of(Path("image.png"), size, boxes, [0, 0])
    return DatasetIndex(Path("."), "coco", ClassMap.from_names(["a"]), {"train": (record,)}), size


def placed(index: DatasetIndex, folder: Path, size: tuple[int, int]) -> DatasetIndex:
    """The index with its image written to `folder`."""
    folder.mkdir()
    Image.new("RGB", size).save(folder / "image.png")
    (record,) = index.splits["train"]
    record = replace(record, path=folder / "image.png")
    return replace(index, splits={"train": (record,)})


def assert_same(before: DatasetIndex, after: DatasetIndex, tolerance_px: float) -> None:
    assert after.classes == before.classes and after.faults == ()
    for split, records in before.splits.items():
        for old, new in zip(records, after.splits[split], strict=True):
            assert (new.image_id, new.width, new.height) == (old.image_id, old.width, old.height)
            assert new.class_indices.tolist() == old.class_indices.tolist()
            # Reading decimals may add one unit in the last place of float32.
            np.testing.assert_allclose(
                new.boxes_xyxy_px, old.boxes_xyxy_px, rtol=1.2e-7, atol=tolerance_px + 1e-12
            )


@settings(max_examples=48, deadline=None)
@example(drawn=hair_outside(), pair=("yolo", "voc"))
@given(drawn=indices(), pair=st.sampled_from(list(product(FORMATS, FORMATS))))
def test_from_any_format_to_any_other_and_back(
    drawn: tuple[DatasetIndex, tuple[int, int]], pair: tuple[str, str]
) -> None:
    first, other = pair
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        index = placed(drawn[0], root / "in", drawn[1])
        steps = []
        for i, target in enumerate((first, other, first)):
            lost = save_dataset(index, root / f"{i}", target)
            assert all(sentence.startswith("the flag ") for sentence in lost)
            after = load_dataset(root / f"{i}", val_split=0)
            assert after.format == target
            assert_same(index, after, TOLERANCE_PX[target])
            if target == "voc":
                (old,), (new,) = index.splits["train"], after.splits["train"]
                assert {f: m.tolist() for f, m in new.flags.items()} == {
                    f: m.tolist() for f, m in old.flags.items()
                }
            index = after
            steps.append(after)
        assert_same(steps[0], steps[2], TOLERANCE_PX[first] + TOLERANCE_PX[other])


def decimal(hundredths: int) -> str:
    return f"{hundredths / 100:.2f}".rstrip("0").rstrip(".")


spans = st.tuples(st.integers(100, 49000), st.integers(0, 1000)).map(lambda s: (s[0], sum(s)))


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(names, spans, spans), min_size=1, max_size=5))
def test_text_of_voc_and_csv_comes_back(
    rows: list[tuple[str, tuple[int, int], tuple[int, int]]],
) -> None:
    """Corners of two decimals below 500 px, since float32 distinguishes six digits."""
    objects = [(name, *map(decimal, (x1, y1, x2, y2))) for name, (x1, x2), (y1, y2) in rows]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "in").mkdir()
        Image.new("RGB", (500, 500)).save(root / "in/a.png")
        annotation = ElementTree.Element("annotation")
        source = ElementTree.SubElement(annotation, "source")
        ElementTree.SubElement(source, "database").text = "The VOC2012 Database"
        for row in objects:
            thing = ElementTree.SubElement(annotation, "object")
            ElementTree.SubElement(thing, "name").text = row[0]
            box = ElementTree.SubElement(thing, "bndbox")
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), row[1:], strict=True):
                ElementTree.SubElement(box, tag).text = value
        ElementTree.ElementTree(annotation).write(root / "in/a.xml", encoding="utf-8")
        index = load_dataset(root / "in", val_split=0)
        assert index.faults == () and save_dataset(index, root / "voc", "voc") == []
        assert voc_objects(root / "voc/Annotations/a.xml") == objects
        assert save_dataset(index, root / "csv", "csv") == []
        again = load_dataset(root / "csv", val_split=0)
        assert save_dataset(again, root / "again", "csv") == []
        tables = [(root / f / "annotations.csv").read_bytes() for f in ("csv", "again")]
        assert tables[0] == tables[1]


def voc_objects(file: Path) -> list[tuple[str, ...]]:
    """Name and corners of each object, by xml.etree alone."""
    tags = ("name", "bndbox/xmin", "bndbox/ymin", "bndbox/xmax", "bndbox/ymax")
    return [
        tuple(thing.findtext(tag, "") for tag in tags)
        for thing in ElementTree.parse(file).getroot().iter("object")
    ]


def test_every_format_has_a_tolerance() -> None:
    assert TOLERANCE_PX.keys() == FORMATS.keys()


@pytest.mark.skipif(not BCCD.is_dir(), reason="the shared data set is not here")
def test_real_set_through_coco_and_csv(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    index = load_dataset(BCCD)
    lost = save_dataset(index, tmp_path / "coco", "coco")
    assert lost == ["the flag 'truncated' of 1131 boxes is lost: COCO has no place for it"]
    save_dataset(load_dataset(tmp_path / "coco"), tmp_path / "csv", "csv")
    save_dataset(load_dataset(tmp_path / "csv"), tmp_path / "voc", "voc")
    boxes = 0
    for split in ("train", "val", "test"):
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = COCO(str(tmp_path / f"coco/annotations/instances_{split}.json"))
        names = {i: category["name"] for i, category in theirs.cats.items()}
        listed = (BCCD / f"ImageSets/Main/{split}.txt").read_text().split()
        assert (tmp_path / f"voc/ImageSets/Main/{split}.txt").read_text().split() == listed
        assert [Path(image["file_name"]).stem for image in theirs.imgs.values()] == listed
        for image_id, image in theirs.imgs.items():
            stem = Path(image["file_name"]).stem
            original = voc_objects(BCCD / f"Annotations/{stem}.xml")
            assert voc_objects(tmp_path / f"voc/Annotations/{stem}.xml") == original
            rows = theirs.loadAnns(theirs.getAnnIds(imgIds=[image_id]))
            corners = [tuple(map(float, row[1:])) for row in original]
            expected = [[x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1] for x1, y1, x2, y2 in corners]
            assert [row["bbox"] for row in rows] == expected
            assert [row["area"] for row in rows] == [w * h for _, _, w, h in expected]
            assert [names[row["category_id"]] for row in rows] == [row[0] for row in original]
            boxes += len(rows)
    assert boxes == 4888
