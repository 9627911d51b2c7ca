"""Labels that would fill the memory, wait for ever, or hold values that no image can have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import coco_set, coco_table, image_file, text_file, yolo_set

from dino_core.data.formats.table import FORMATS
from dino_core.data.formats.values import clean, is_true, number, whole_number
from dino_core.data.load import load_dataset, read_dataset
from dino_core.data.save import save_dataset
from dino_core.errors import DataError

# --- numbers and flags -------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "as_number", "as_whole"),
    [
        (3, 3.0, 3), (2.5, 2.5, None), ("4", 4.0, 4), (" 5.0 ", 5.0, None), (6.0, 6.0, 6),
        (True, None, None), (None, None, None), ([1], None, None), ("", None, None),
        ("²", None, None), ("--5", None, None), ("-5", -5.0, -5), (10**400, None, None),
        ("9" * 5000, None, None), (1e300, None, None), ("nan", None, None), ("1e400", None, None),
        (2**63, None, None), (float("inf"), None, None),
    ],
)  # fmt: skip
def test_numbers(value: object, as_number: float | None, as_whole: int | None) -> None:
    assert number(value) == as_number
    assert whole_number(value) == as_whole


@pytest.mark.parametrize("value", [1, True, "1", "true", "True", "yes", 1.0, " 1 "])
def test_flags_that_are_set(value: object) -> None:
    assert is_true(value)


@pytest.mark.parametrize("value", [0, False, "0", "false", "no", "", None, 0.0, "0.0", "none"])
def test_flags_that_are_not_set(value: object) -> None:
    assert not is_true(value)


@pytest.mark.parametrize(("iscrowd", "crowds"), [("0", 0), ("1", 1), (0, 0), ("false", 0)])
def test_crowds_as_text(tmp_path: Path, iscrowd: object, crowds: int) -> None:
    """As converters write them that make every field a text."""
    entry = {"id": "1", "image_id": "7", "category_id": "9", "bbox": ["1", "2", "10", "20"],
             "area": "200", "iscrowd": iscrowd}  # fmt: skip
    coco_set(tmp_path, coco_table(annotations=[entry]))
    record = read_dataset(tmp_path).splits["train"][0]
    assert record.boxes_xyxy_px.tolist() == [[1, 2, 11, 22]]
    assert int(record.is_crowd.sum()) == crowds
    assert record.areas.tolist() == [200]


# --- class tables ------------------------------------------------------------


@pytest.mark.parametrize("word", ["1000000000", "1e300", "20000000", "100000", "9" * 5000])
def test_a_class_index_does_not_fill_the_memory(tmp_path: Path, word: str) -> None:
    yolo_set(tmp_path, f"{word} 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.3 0.3\n", yaml=None)
    index = read_dataset(tmp_path)
    assert index.classes.names == ("class_0",)
    assert [f.kind for f in index.faults].count("malformed-label") == 2


@pytest.mark.parametrize("count", ["3000000000", "100001", "-1", "²", "9" * 5000, "1e9"])
def test_a_count_of_classes_does_not_fill_the_memory(tmp_path: Path, count: str) -> None:
    yolo_set(tmp_path, yaml=f"train: images/train\nnc: {count}\n")
    with pytest.raises(DataError, match=r"data\.yaml: nc is .*expected the number of classes"):
        read_dataset(tmp_path)


def test_large_category_ids_take_no_memory(tmp_path: Path) -> None:
    table = coco_table(
        categories=[{"id": 10**9, "name": "dog"}, {"id": 10**30, "name": "cat"}],
        annotations=[{"id": 1, "image_id": 7, "category_id": 10**9, "bbox": [1, 2, 3, 4]}],
    )
    index = read_dataset(coco_set(tmp_path, table).parents[1])
    assert index.classes.names == ("dog",) and index.classes.source_ids == (10**9,)
    assert [f.kind for f in index.faults] == ["malformed-class"]


# --- aliases of YAML ---------------------------------------------------------

BOMB = 'a0: &a0 ["x", "x", "x", "x", "x", "x", "x", "x", "x"]\n' + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 13)
)
BOMBED = ["names: *a12", "nc: *a12\nnames: [a]", "kpt_shape: *a12\nnames: [a]",
          "names: {0: *a12}", "val: *a12\nnames: [a]", "path: *a12\nnames: [cat, dog]",
          "kpt_shape: [*a12, 3]\nnames: [a]"]  # fmt: skip

CHECK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from dino_core.data.load import read_dataset
from dino_core.errors import DataError
try:
    print(len(read_dataset(sys.argv[1]).classes))
except DataError as error:
    print(error.message)
"""


def read_apart(folder: Path) -> str:
    """What reading gives, in a process with a limit on memory and time."""
    command = [sys.executable, "-c", CHECK, str(folder)]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()


@pytest.mark.parametrize("rest", BOMBED)
def test_aliases_do_not_multiply_in_messages(tmp_path: Path, rest: str) -> None:
    yolo_set(tmp_path, yaml=f"{BOMB}train: images/train\n{rest}\n")
    answer = read_apart(tmp_path)
    assert answer.isdecimal() or (tmp_path / "data.yaml").as_posix() in answer
    assert 0 < len(answer) < 400 + len(str(tmp_path))


def test_a_list_of_aliases_is_no_table(tmp_path: Path) -> None:
    lines = [f"- &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]" for i in range(13)]
    yolo_set(tmp_path, yaml="\n".join(lines))
    assert "expected keys like train, val and names, found [[" in read_apart(tmp_path)


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 3000, "- " * 5000])
def test_deep_yaml_is_an_error(tmp_path: Path, text: str) -> None:
    yolo_set(tmp_path, yaml=text)
    with pytest.raises(DataError, match=r"data\.yaml: not (valid|usable) YAML"):
        read_dataset(tmp_path)


# --- JSON --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"images": ' + "9" * 5000 + "}", "a number has thousands of digits"),
        ('{"images": [', "not valid JSON"),
    ],
)
def test_json_that_python_cannot_hold(tmp_path: Path, text: str, message: str) -> None:
    file = text_file(tmp_path / "instances_train.json", text)
    index = read_dataset(file)
    assert [f.kind for f in index.faults] == ["malformed-file"]
    assert message in index.faults[0].place


HUGE = 10**400


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"bbox": [1, 2, HUGE, 4]}, "malformed-label"),
        ({"bbox": [1, 2, 1e308, 4]}, "malformed-label"),
        ({"bbox": ["²", 2, 3, 4]}, "malformed-label"),
        ({"bbox": {"x": 1}}, "malformed-label"),
        ({"area": HUGE}, "malformed-label"),
        ({"image_id": HUGE}, "malformed-label"),
        ({"category_id": "²"}, "malformed-label"),
        ({"category_id": -HUGE}, "malformed-label"),
    ],
)
def test_each_impossible_value_is_one_fault(
    tmp_path: Path, change: dict[str, Any], kind: str
) -> None:
    sound = {"image_id": 7, "category_id": 9, "bbox": [1, 2, 10, 20]}
    coco_set(tmp_path, coco_table(annotations=[{**sound, **change}, sound]))
    index = read_dataset(tmp_path)
    assert [f.kind for f in index.faults] == [kind]
    assert len(index.faults[0].place) < 400
    assert index.splits["train"][0].boxes_xyxy_px.tolist() == [[1, 2, 11, 22]]


@pytest.mark.parametrize("size", [(HUGE, 30), (40, "²"), (10**10, 30), (-1, 30), (0.5, 30)])
def test_impossible_sizes_are_ignored(tmp_path: Path, size: tuple[Any, Any]) -> None:
    images = [{"id": 7, "file_name": "a.jpg", "width": size[0], "height": size[1]}]
    coco_set(tmp_path, coco_table(images=images))
    index = read_dataset(tmp_path)
    assert "malformed-size" in [f.kind for f in index.faults]
    assert (index.splits["train"][0].width, index.splits["train"][0].height) == (40, 30)


@pytest.mark.parametrize("name", ["\ud800.jpg", "a\0.jpg", "x" * 5000, "a/" * 3000, "", "/", ".."])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    table = coco_table(
        images=[{"id": 3, "file_name": name}, {"id": 7, "file_name": "a.jpg"}],
        categories=[{"id": 9, "name": "d\ud800g"}, {"id": 4, "name": "cat"}],
    )
    coco_set(tmp_path / "in", table)
    index = read_dataset(tmp_path / "in")
    assert [f.kind for f in index.faults] == ["missing-image"]
    assert index.classes.names == ("cat", "d?g")
    for format in ("coco", "yolo", "voc", "csv", "labelme"):
        save_dataset(index, tmp_path / format, format)


@pytest.mark.parametrize("format", FORMATS)
def test_names_that_are_not_utf8_are_saved_under_others(tmp_path: Path, format: str) -> None:
    yolo_set(tmp_path / "in")
    latin = os.fsdecode(b"caf\xe9")
    (tmp_path / "in/images/train/a.jpg").rename(tmp_path / f"in/images/train/{latin}.jpg")
    (tmp_path / "in/labels/train/a.txt").rename(tmp_path / f"in/labels/train/{latin}.txt")
    index = read_dataset(tmp_path / "in")
    assert len(index.splits["train"][0].boxes_xyxy_px) > 0
    lost = save_dataset(index, tmp_path / "out", format)
    assert any("1 image was renamed" in sentence for sentence in lost)
    saved = read_dataset(tmp_path / "out").splits["train"][0]
    assert saved.path.name == "caf_.jpg"
    assert saved.boxes_xyxy_px.shape == index.splits["train"][0].boxes_xyxy_px.shape


def test_lone_surrogates_are_replaced() -> None:
    assert clean("a\ud800b\udfffc\U0001f600") == "a?b?c\U0001f600"


# --- files that are no files -------------------------------------------------


def yolo_label(folder: Path) -> Path:
    return yolo_set(folder) / "labels/train/a.txt"


def yolo_list(folder: Path) -> Path:
    yolo_set(folder, yaml="train: train.txt\nval: images/val\nnames: [cat, dog]\n")
    return folder / "train.txt"


def yolo_table(folder: Path) -> Path:
    return yolo_set(folder) / "data.yaml"


def yolo_names(folder: Path) -> Path:
    return yolo_set(folder, yaml=None) / "classes.txt"


def coco_labels(folder: Path) -> Path:
    coco_set(folder, coco_table(), "val")
    return coco_set(folder, coco_table())


def csv_table(folder: Path) -> Path:
    image_file(folder / "a.jpg")
    return folder / "labels.csv"


def voc_label(folder: Path) -> Path:
    image_file(folder / "JPEGImages/a.jpg")
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    text = f"<annotation><object><name>cat</name>{box}</object></annotation>"
    text_file(folder / "Annotations/b.xml", text)
    return folder / "Annotations/a.xml"


def labelme_label(folder: Path) -> Path:
    image_file(folder / "a.jpg")
    shape = {"label": "cat", "points": [[1, 2], [5, 6]], "shape_type": "rectangle"}
    text_file(folder / "b.json", json.dumps({"shapes": [shape], "imagePath": "a.jpg"}))
    return folder / "a.json"


PLACES = [yolo_label, yolo_list, yolo_table, yolo_names, coco_labels, csv_table, voc_label,
          labelme_label]  # fmt: skip


@pytest.mark.parametrize("make", PLACES)
@pytest.mark.parametrize("kind", ["pipe", "zeros"])
def test_pipes_and_devices_as_labels_are_not_read(
    tmp_path: Path, make: Callable[[Path], Path], kind: str
) -> None:
    """Reading them would wait for ever, or fill the memory; the process has little of both."""
    path = make(tmp_path)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    assert read_apart(tmp_path)


@pytest.mark.parametrize("make", [yolo_label, voc_label])
def test_an_endless_label_file_is_not_read(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    with path.open("w") as file:
        file.write("<annotation>")
        file.truncate(20 << 30)  # a hole: it takes no space on the disk
    index = read_dataset(tmp_path)
    assert any("at most 67,108,864 are read" in f.place for f in index.faults)


def test_a_pipe_is_named(tmp_path: Path) -> None:
    path = yolo_label(tmp_path)
    path.unlink()
    os.mkfifo(path)
    faults = load_dataset(tmp_path).faults
    assert [f.kind for f in faults] == ["malformed-file", "missing-split"]
    assert "a.txt: not a regular file but a named pipe, its image is left out" in str(faults)
