"""Pascal VOC: hand-worked files, every layout and mistake, and real data by another reader."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from datasets import image_file, record_of, text_file

from dino_core.data.check.run import quick_findings
from dino_core.data.formats.voc import write_voc
from dino_core.data.load import load_dataset, read_dataset
from dino_core.data.records import DatasetIndex
from dino_core.data.save import save_dataset
from dino_core.detections import ClassMap
from dino_core.errors import DataError

BCCD = Path(__file__).parents[3] / "../shared/data/bccd"
SIZE = "<size><width>40</width><height>20</height><depth>3</depth></size>"


def thing(name: str = "cat", box: tuple[object, ...] = (1, 1, 10, 20), more: str = "") -> str:
    corners = "".join(
        f"<{tag}>{v}</{tag}>" for tag, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>"


def annotation(*objects: str, size: str = SIZE, filename: str = "a.jpg") -> str:
    inner = "\n".join((f"<filename>{filename}</filename>", size, *objects))
    return f"<annotation>\n{inner}\n</annotation>\n"


def voc_set(root: Path, text: str | None = None) -> Path:
    image_file(root / "JPEGImages/a.jpg")
    text_file(root / "Annotations/a.xml", annotation(thing()) if text is None else text)
    return root


def test_hand_worked_file(tmp_path: Path) -> None:
    text = annotation(
        thing("dog", (1, 1, 40, 20), "<pose>Left</pose><difficult>1</difficult>"),
        thing("cat", (3, 5, 3, 5), "<truncated>1</truncated><difficult>0</difficult>"),
        thing("cat", (2.5, 1.25, 10.75, 8), "<part><name>head</name><bndbox/></part>"),
    )
    voc_set(tmp_path, text)
    text_file(tmp_path / "Annotations/b.xml", annotation(size=""))
    image_file(tmp_path / "JPEGImages/b.png", (8, 9))
    index = read_dataset(tmp_path, "voc")
    assert (index.format, index.root, index.warnings) == ("voc", tmp_path, ())
    assert index.classes == ClassMap(("cat", "dog"), (0, 1))
    first, empty = index.splits["train"]
    # pixels 1 to 40 are the whole width; the box of pixel (3, 5) alone is one pixel wide
    expected = [[0, 0, 40, 20], [2, 4, 3, 5], [1.5, 0.25, 10.75, 8]]
    assert first.boxes_xyxy_px.tolist() == expected
    assert first.class_indices.tolist() == [1, 0, 0] and not first.is_crowd.any()
    assert {flag: marked.tolist() for flag, marked in first.flags.items()} == {
        "difficult": [True, False, False],
        "truncated": [False, True, False],
    }
    assert (first.image_id, first.width, first.height) == (1, 40, 20)
    assert first.areas.tolist() == [800, 1, 9.25 * 7.75]
    assert (empty.image_id, empty.path.name, empty.width, empty.height) == (2, "b.png", 8, 9)
    assert empty.boxes_xyxy_px.shape == (0, 4)
    assert index.unread == (
        "1 objects have a 'pose', which is not kept",
        "1 objects have a 'part', which is not kept",
    )


@pytest.mark.parametrize(
    ("xml", "image", "split"),
    [
        ("Annotations/a.xml", "JPEGImages/a.jpg", "train"),
        ("annotations/a.xml", "images/a.jpg", "train"),
        ("Annotations/a.xml", "Annotations/a.jpg", "train"),
        ("a.xml", "a.jpg", "train"),
        ("train/a.xml", "train/a.jpg", "train"),
        ("valid/a.xml", "valid/a.jpg", "val"),
        ("test/Annotations/a.xml", "test/JPEGImages/a.jpg", "test"),
        ("Annotations/val/a.xml", "images/val/a.jpg", "val"),
        ("VOCdevkit/VOC2012/Annotations/a.xml", "VOCdevkit/VOC2012/JPEGImages/a.jpg", "train"),
        ("labels/a.xml", "images/a.jpg", "train"),
        ("labels/train/a.xml", "images/train/a.jpg", "train"),
        ("annotations/xmls/a.xml", "images/a.jpg", "train"),
        ("val_annotations/a.xml", "val_images/a.jpg", "val"),
        ("Annotation/a.xml", "Images/a.jpg", "train"),
        ("VOC2007/Annotations/a.xml", "VOC2007/JPEGImages/a.jpg", "train"),
        ("annotations/day/a.xml", "images/day/a.jpg", "train"),
        ("test_zip/test/a.xml", "test_zip/test/a.jpg", "test"),
    ],
)
def test_layouts(tmp_path: Path, xml: str, image: str, split: str) -> None:
    text_file(tmp_path / xml, annotation(thing()))
    image_file(tmp_path / image)
    index = load_dataset(tmp_path, val_split=0)
    assert list(index.splits) == [split] and index.warnings == ()
    assert index.splits[split][0].path == tmp_path / image


def test_two_years_are_ambiguous(tmp_path: Path) -> None:
    voc_set(tmp_path / "VOCdevkit/VOC2007")
    voc_set(tmp_path / "VOCdevkit/VOC2012")
    with pytest.raises(DataError, match=r"several data sets, .*VOC2007 and .*VOC2012"):
        read_dataset(tmp_path, "voc")
    assert len(read_dataset(tmp_path / "VOCdevkit/VOC2007", "voc").splits["train"]) == 1


def listed_set(root: Path, **lists: str) -> Path:
    for stem in ("a", "b b", "c"):
        image_file(root / f"JPEGImages/{stem}.jpg")
        text_file(root / f"Annotations/{stem}.xml", annotation(thing(), filename=f"{stem}.jpg"))
    for name, text in lists.items():
        text_file(root / f"ImageSets/Main/{name}.txt", text)
    return root


def test_lists_of_splits(tmp_path: Path) -> None:
    listed_set(
        tmp_path,
        train="c\n\nb b\n",
        val="a\n",
        trainval="a\nb b\nc\n",
        test="",
        cat_train="a -1\nc 1\n",
    )
    index = read_dataset(tmp_path, "voc")
    stems = {split: [r.path.stem for r in records] for split, records in index.splits.items()}
    assert stems == {"train": ["c", "b b"], "val": ["a"]} and index.warnings == ()


@pytest.mark.parametrize("folder", ["ImageSets", "."])
def test_lists_elsewhere(tmp_path: Path, folder: str) -> None:
    listed_set(tmp_path)
    text_file(tmp_path / folder / "train.txt", "JPEGImages/c.jpg\na\n")
    text_file(tmp_path / folder / "valid.txt", "b b\n")
    index = read_dataset(tmp_path, "voc")
    names = {split: [r.path.stem for r in records] for split, records in index.splits.items()}
    assert names == {"train": ["c", "a"], "val": ["b b"]} and index.warnings == ()


def test_trainval_alone_is_train(tmp_path: Path) -> None:
    listed_set(tmp_path, trainval="a.jpg\nJPEGImages/c.jpg\n", test="b b")
    index = read_dataset(tmp_path, "voc")
    assert {s: len(r) for s, r in index.splits.items()} == {"train": 2, "test": 1}


def faults_of(index: DatasetIndex) -> list[tuple[str, str]]:
    """Kind and place of each fault, places without the folder of the data."""
    return [(fault.kind, fault.place.replace(f"{index.root}/", "")) for fault in index.faults]


def test_what_lists_and_files_do_not_share_is_a_fault(tmp_path: Path) -> None:
    index = read_dataset(listed_set(tmp_path, train="a 1\nnope\n"), "voc")
    assert [r.path.stem for r in index.splits["train"]] == ["a"]
    assert faults_of(index) == [
        ("missing-label", "ImageSets/Main/train.txt line 2: nope"),
        ("image-not-listed", "Annotations/b b.xml: in no list of images"),
        ("image-not-listed", "Annotations/c.xml: in no list of images"),
    ]


def test_an_image_listed_twice_is_read_once(tmp_path: Path) -> None:
    index = read_dataset(listed_set(tmp_path, train="a\nc\nJPEGImages/a.jpg\nb b\n"), "voc")
    assert [r.path.stem for r in index.splits["train"]] == ["a", "c", "b b"]
    place = "ImageSets/Main/train.txt line 3: a is also in line 1"
    assert faults_of(index) == [("image-listed-twice", place)]


def test_a_list_that_cannot_be_used_leaves_the_other_splits(tmp_path: Path) -> None:
    listed_set(tmp_path, train="a\nb b\nc\n", val="x\ny\n")
    (tmp_path / "ImageSets/Main/test.txt").write_bytes(b"\xff\xfe\xff")
    index = read_dataset(tmp_path, "voc")
    assert {split: len(records) for split, records in index.splits.items()} == {"train": 3}
    *unlabeled, split, unreadable = faults_of(index)
    assert unlabeled == [
        ("missing-label", "ImageSets/Main/val.txt line 1: x"),
        ("missing-label", "ImageSets/Main/val.txt line 2: y"),
    ]
    place = "ImageSets/Main/val.txt: none of its images has an annotation file in Annotations"
    assert split == ("missing-split", place)
    assert unreadable[0] == "malformed-file"
    assert unreadable[1].startswith("ImageSets/Main/test.txt: cannot be read")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x\ny\n", r"train\.txt: none of its images has an annotation file in .*Annotations"),
        ("\n", "the lists name no images"),
    ],
)
def test_no_list_that_can_be_used_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_dataset(listed_set(tmp_path, train=text), "voc")


MALFORMED_FILES = [
    ("<annotation>\n<object>\n", "line 3: not valid XML (no element found)"),
    ("<annotation>\n<size></sise></annotation>", "line 2: not valid XML (mismatched tag)"),
    ("<annotation> &nope; </annotation>", "line 1: not valid XML (undefined entity)"),
    (
        "<!DOCTYPE annotation [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>\n"
        "<annotation>&x;</annotation>",
        "line 1: a document type (<!DOCTYPE annotation), which could declare entities, is refused",
    ),
    ("<?xml version='1.0' encoding='nope'?><annotation> </annotation>", "line 1: not readable"),
    ("<note/>", "line 1: the root element is <note>, expected <annotation>"),
    ("", "line 1: not valid XML (no element found)"),
]
MALFORMED_OBJECTS = [
    ("<object>\n<name/>\n</object>", "line 5: the object has no <name>"),
    (
        "<object><name>dog</name><robndbox/></object>",
        "line 5: the object 'dog' has no <bndbox>, found name, robndbox",
    ),
    (
        "<object><name>dog</name><bndbox>\n<xmin>1</xmin></bndbox></object>",
        "line 5: <bndbox> has no <ymin>, found xmin",
    ),
    ("<object>\n<name>dog</name>\n<bndbox/></object>", "line 7: <bndbox> has no <xmin>, found no"),
    (thing("dog", (1, "two", 3, 4)), "line 5: ymin is 'two', expected a number"),
    (thing("dog", (1, 2, "nan", 4)), "line 5: xmax is 'nan', expected a number"),
]


@pytest.mark.parametrize(("text", "place"), MALFORMED_FILES)
def test_a_malformed_file_is_left_out_with_its_image(tmp_path: Path, text: str, place: str) -> None:
    voc_set(tmp_path, text)
    image_file(tmp_path / "JPEGImages/b.jpg")
    text_file(tmp_path / "Annotations/b.xml", annotation(thing(), filename="b.jpg"))
    index = load_dataset(tmp_path, val_split=0)
    ((kind, found),) = faults_of(index)
    assert kind == "malformed-file" and found.startswith(f"Annotations/a.xml {place}")
    assert [r.path.name for r in index.splits["train"]] == ["b.jpg"]


@pytest.mark.parametrize(("text", "place"), MALFORMED_OBJECTS)
def test_a_malformed_object_leaves_the_others(tmp_path: Path, text: str, place: str) -> None:
    index = read_dataset(voc_set(tmp_path, annotation(thing(), text, thing())), "voc")
    ((kind, found),) = faults_of(index)
    assert kind == "malformed-label" and found.startswith(f"Annotations/a.xml {place}")
    assert index.splits["train"][0].boxes_xyxy_px.tolist() == [[0, 0, 10, 20]] * 2
    assert index.classes.names == ("cat",)


@pytest.mark.parametrize("width", ["wide", "nan", "inf"])
def test_a_malformed_size_is_ignored(tmp_path: Path, width: str) -> None:
    size = f"<size>\n<width>{width}</width><height>20</height></size>"
    index = read_dataset(voc_set(tmp_path, annotation(thing(), size=size)), "voc")
    place = f"Annotations/a.xml line 3: width is '{width}', expected a number of pixels"
    assert faults_of(index) == [("malformed-size", place)]
    assert index.splits["train"][0].boxes_xyxy_px.tolist() == [[0, 0, 10, 20]]


def test_six_malformed_labels_in_six_files_are_all_listed(tmp_path: Path) -> None:
    texts = [(annotation(thing(), text, thing()), place) for text, place in MALFORMED_OBJECTS[:5]]
    for i, (text, _) in enumerate([*texts, MALFORMED_FILES[0]]):
        image_file(tmp_path / f"JPEGImages/{i}.jpg")
        text_file(tmp_path / f"Annotations/{i}.xml", text)
    index = read_dataset(tmp_path, "voc")
    expected = [f"Annotations/{i}.xml {place}" for i, (_, place) in enumerate(texts)]
    expected.append(f"Annotations/5.xml {MALFORMED_FILES[0][1]}")
    found = faults_of(index)
    assert [kind for kind, _ in found] == ["malformed-label"] * 5 + ["malformed-file"]
    assert all(f.startswith(e) for (_, f), e in zip(found, expected, strict=True))
    assert [len(r.boxes_xyxy_px) for r in index.splits["train"]] == [2] * 5
    findings = {finding.kind: finding.count for finding in quick_findings(index)}
    assert findings["malformed-label"] == 5 and findings["malformed-file"] == 1


def test_a_split_of_malformed_files_leaves_the_other_splits(tmp_path: Path) -> None:
    for split, text in (("train", annotation(thing())), ("val", "<annotation>")):
        image_file(tmp_path / f"{split}/a.jpg")
        text_file(tmp_path / f"{split}/a.xml", text)
    index = read_dataset(tmp_path, "voc")
    assert list(index.splits) == ["train"]
    assert [kind for kind, _ in faults_of(index)] == ["malformed-file"]


def test_a_set_without_any_object_has_faults_and_no_classes(tmp_path: Path) -> None:
    voc_set(tmp_path, annotation("<object><name>cat</name></object>"))
    index = read_dataset(tmp_path, "voc")
    assert index.classes == ClassMap((), ()) and index.splits == {}
    assert [kind for kind, _ in faults_of(index)] == ["malformed-label", "labels-lost"]
    with pytest.raises(DataError, match=r"a\.xml line 4: the object 'cat' has no <bndbox>"):
        load_dataset(tmp_path)
    text_file(tmp_path / "Annotations/a.xml", annotation())
    with pytest.raises(DataError, match="there are no labels, so no class is known"):
        load_dataset(tmp_path)


def test_entities_that_grow_without_bound_are_refused(tmp_path: Path) -> None:
    laughs = "".join(f"<!ENTITY l{i + 1} '{f'&l{i};' * 10}'>" for i in range(12))
    text = f"<!DOCTYPE a [<!ENTITY l0 'ha'>{laughs}]><annotation>&l12;</annotation>"
    with pytest.raises(DataError, match="document type") as caught:
        load_dataset(voc_set(tmp_path, text), "voc")
    assert "remove the <!DOCTYPE ...> from the file" in caught.value.message


def test_no_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Pascal VOC data set found"):
        read_dataset(tmp_path, "voc")


def test_other_encodings(tmp_path: Path) -> None:
    voc_set(tmp_path)
    for encoding in ("utf-16", "iso-8859-1", "utf-8-sig"):
        declared = "utf-8" if encoding == "utf-8-sig" else encoding
        text = f"<?xml version='1.0' encoding='{declared}'?>" + annotation(thing("Kätzchen"))
        (tmp_path / "Annotations/a.xml").write_bytes(text.encode(encoding))
        assert read_dataset(tmp_path, "voc").classes.names == ("Kätzchen",)


def test_the_image_decides_its_size(tmp_path: Path) -> None:
    sizes = {"a": (40, 20), "half": (80, 40), "none": (0, 0), "tall": (20, 40)}
    for stem, (width, height) in sizes.items():
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        image_file(tmp_path / f"JPEGImages/{stem}.jpg")
        text_file(tmp_path / f"Annotations/{stem}.xml", annotation(thing(), size=size))
    index = read_dataset(tmp_path, "voc")
    boxes = {r.path.stem: r.boxes_xyxy_px.tolist() for r in index.splits["train"]}
    assert boxes == {"a": [[0, 0, 10, 20]], "half": [[0, 0, 5, 10]], "none": [[0, 0, 10, 20]]}
    (scaled, half), (shape, tall) = faults_of(index)
    assert scaled == "other-size" and half.startswith("Annotations/half.xml: 80x40 stated")
    assert shape == "wrong-shape" and tall.startswith("Annotations/tall.xml: 20x40 stated")


def test_images_by_their_own_name_or_the_stated_one(tmp_path: Path) -> None:
    for stem, filename, image in (
        ("a", "C:\\pictures\\a.JPG", "a.JPG"),
        ("b", "something else.jpg", "b.png"),
        ("c", "stated.jpg", "stated.jpg"),
        ("d", "", "d.jpeg"),
        ("e", "gone.jpg", "other.jpg"),
    ):
        text_file(tmp_path / f"train/{stem}.xml", annotation(thing(), filename=filename, size=""))
        image_file((tmp_path / f"train/{image}").with_suffix(".jpg")).rename(
            tmp_path / f"train/{image}"
        )
    index = read_dataset(tmp_path, "voc")
    found = [r.path.name for r in index.splits["train"]]
    assert found == ["a.JPG", "b.png", "stated.jpg", "d.jpeg"]
    assert faults_of(index) == [("missing-image", "train/e.xml: e.jpg")]


def test_boxes_that_are_repaired(tmp_path: Path) -> None:
    text = annotation(*(thing(box=b) for b in ((0, 0, 9, 9), (1, 1, 99, 9), (9, 9, 3, 12))))
    index = read_dataset(voc_set(tmp_path, text), "voc")
    assert index.splits["train"][0].boxes_xyxy_px.tolist() == [[0, 0, 9, 9], [0, 0, 40, 9]]
    assert [(kind, place.partition(":")[0]) for kind, place in faults_of(index)] == [
        ("box-from-zero", "Annotations/a.xml line 4"),
        ("box-outside", "Annotations/a.xml line 5"),
        ("box-degenerate", "Annotations/a.xml line 6"),
    ]
    assert [len(fault.boxes) for fault in index.faults] == [0, 1, 1]


def test_written_files(tmp_path: Path) -> None:
    more = "<difficult>1</difficult><occluded>1</occluded>"
    text = annotation(thing("a&lt;b &amp; 'c'", (2.5, 1, 10.125, 20), more))
    index = read_dataset(voc_set(tmp_path / "in", text), "voc")
    assert write_voc(index, tmp_path / "out") == []
    assert (tmp_path / "out/ImageSets/Main/train.txt").read_text() == "a\n"
    assert (tmp_path / "out/JPEGImages/a.jpg").read_bytes() == (
        tmp_path / "in/JPEGImages/a.jpg"
    ).read_bytes()
    assert read_dataset(tmp_path / "out", "voc").classes.names == ("a<b & 'c'",)
    root = ElementTree.parse(tmp_path / "out/Annotations/a.xml").getroot()
    assert [root.findtext(f"size/{tag}") for tag in ("width", "height")] == ["40", "20"]
    found = {child.tag: child.text for child in root.iter() if child.text and child.text.strip()}
    assert {tag: found[tag] for tag in ("name", "difficult", "truncated", "occluded")} == {
        "name": "a<b & 'c'", "difficult": "1", "truncated": "0", "occluded": "1",
    }  # fmt: skip
    corners = [found[tag] for tag in ("xmin", "ymin", "xmax", "ymax")]
    assert corners == ["2.5", "1", "10.125", "20"]


def test_what_voc_cannot_hold_is_listed(tmp_path: Path) -> None:
    path = image_file(tmp_path / "a.jpg")
    record = record_of(
        path, (40, 20), [[0, 0, 10, 10], [0, 0, 40, 20]], [0, 1], 17,
        is_crowd=[False, True], areas=[55.0, None],
    )  # fmt: skip
    index = DatasetIndex(tmp_path, "coco", ClassMap(("cat", "dog"), (3, 8)), {"train": (record,)})
    crowd, unused, ids, images, areas = save_dataset(index, tmp_path / "out", "voc")
    assert crowd == "1 crowd box left out: VOC cannot mark crowds"
    assert unused == "classes without boxes are lost (dog): VOC knows classes by their boxes"
    assert ids == "the class ids (3) are lost: VOC knows classes by name, in sorted order"
    assert images == "train: image ids are lost, VOC knows images by name"
    assert areas.startswith("areas of 1 box are lost")
    assert len(read_dataset(tmp_path / "out", "voc").splits["train"][0].class_indices) == 1


def test_sets_that_cannot_be_written(tmp_path: Path) -> None:
    index = read_dataset(voc_set(tmp_path / "in"), "voc")
    text_file(tmp_path / "out", "a file where the folder should be")
    with pytest.raises(DataError, match="out: cannot be written"):
        save_dataset(index, tmp_path / "out", "voc")
    record = record_of(tmp_path / "in/JPEGImages/a.jpg", (40, 20))
    empty = DatasetIndex(tmp_path, "coco", index.classes, {"train": (record,)})
    with pytest.raises(DataError, match="there are no boxes, so VOC could not name the classes"):
        write_voc(empty, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_images_of_one_name_in_two_splits(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        image_file(tmp_path / split / "a.jpg")
        text_file(tmp_path / split / "a.xml", annotation(thing(split)))
    index = read_dataset(tmp_path, "voc")
    assert any("renamed" in sentence for sentence in save_dataset(index, tmp_path / "out", "voc"))
    after = read_dataset(tmp_path / "out", "voc")
    assert [after.splits[s][0].path.name for s in ("train", "val")] == ["a.jpg", "valid_a.jpg"]
    assert after.classes.names == ("train", "valid")


def test_devkit_convention_on_an_upright_image(tmp_path: Path) -> None:
    """A file stored sideways is measured upright, as training and prediction see it."""
    image_file(tmp_path / "a.jpg", (40, 20), orientation=6)
    size = "<size><width>20</width><height>40</height></size>"
    text_file(tmp_path / "a.xml", annotation(thing(box=(1, 1, 20, 40)), size=size))
    (record,) = read_dataset(tmp_path, "voc").splits["train"]
    assert (record.width, record.height) == (20, 40)
    np.testing.assert_array_equal(record.boxes_xyxy_px, [[0, 0, 20, 40]])


@pytest.mark.skipif(not BCCD.is_dir(), reason="the shared data set is not here")
def test_real_set_agrees_with_an_independent_reader() -> None:
    index = read_dataset(BCCD, "voc")
    assert index.classes.names == ("Platelets", "RBC", "WBC") and index.warnings == ()
    assert {s: len(r) for s, r in index.splits.items()} == {"train": 205, "val": 87, "test": 72}
    for split, records in index.splits.items():
        ids = (BCCD / f"ImageSets/Main/{split}.txt").read_text().split()
        assert [record.path.stem for record in records] == ids
        for record in records:
            root = ElementTree.parse(BCCD / f"Annotations/{record.path.stem}.xml").getroot()
            rows = [
                (
                    o.findtext("name"),
                    int(o.findtext("bndbox/xmin", "")) - 1,
                    int(o.findtext("bndbox/ymin", "")) - 1,
                    int(o.findtext("bndbox/xmax", "")),
                    int(o.findtext("bndbox/ymax", "")),
                )
                for o in root.iter("object")
            ]
            names = [index.classes.names[i] for i in record.class_indices]
            ours = [(n, *box) for n, box in zip(names, record.boxes_xyxy_px.tolist(), strict=True)]
            assert ours == rows
