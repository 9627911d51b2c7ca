"""`dino check` end to end: tables, JSON, the page, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from factories import make_coco_dataset
from PIL import Image

from dino_cli.app import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Drawn shapes, rare classes and small boxes and all: notes, no warnings."""
    return make_coco_dataset(tmp_path / "clean", [("train", 6), ("val", 3)], (96, 128))


@pytest.fixture
def faulty(clean: Path) -> Path:
    """With a truncated image and a box across the border."""
    file = clean / "train" / "0002.png"
    with Image.open(file) as image:
        image.convert("RGB").save(clean / "train" / "0002.jpg")
    file.unlink()
    labels = clean / "annotations" / "instances_train.json"
    content = json.loads(labels.read_text().replace("0002.png", "0002.jpg"))
    content["annotations"][0]["bbox"] = [100, 10, 60, 40]
    labels.write_text(json.dumps(content))
    broken = clean / "train" / "0002.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    return clean


def test_clean_data_pass(clean: Path, capsys: Capture) -> None:
    assert run(["check", str(clean), "--strict"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("train: 6 images, ")
    assert "warnings\n" not in captured.out
    assert captured.err.splitlines()[-1] == "report in runs/check/report.html"


def test_findings_are_listed_by_severity_with_their_first_places(
    faulty: Path, capsys: Capture
) -> None:
    assert run(["check", str(faulty)]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("errors")
    assert lines[at + 1] == "  1 image ends early"
    assert lines[at + 2] == "      fix: copy or download the file again"
    assert lines[at + 3].startswith("      train/0002.jpg: image file is truncated")
    at = lines.index("warnings")
    assert lines[at + 1] == "  1 box reaches outside its image and is clipped"
    assert "annotations[0] (id 1): corners 100, 10, 160, 50 in train/" in lines[at + 3]
    assert lines[-1].startswith("1 error, 1 warning")


def test_strict_exits_3_and_keeps_the_report(faulty: Path, capsys: Capture) -> None:
    assert run(["check", str(faulty), "--strict", "--out", "here"]) == 3
    assert capsys.readouterr().err.splitlines()[-1] == "report in here/report.html"
    page = Path("here/report.html").read_text()
    assert "train/0002.jpg" in page
    assert "train/0001.png" in page
    assert "http" not in page


def test_json_is_all_of_stdout(faulty: Path, capsys: Capture) -> None:
    assert run(["check", str(faulty), "--json", "--strict"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer == json.loads(Path("runs/check/findings.json").read_text())
    assert list(answer) == [
        "schema", "data", "format", "splits", "classes", "images_decoded", "counts", "findings",
        "report",
    ]  # fmt: skip
    assert answer["schema"] == 1
    assert answer["format"] == "coco"
    assert answer["splits"]["val"]["images"] == 3
    assert answer["counts"]["error"] == answer["counts"]["warning"] == 1
    error, warning = answer["findings"][:2]
    assert {key: error[key] for key in ("kind", "severity", "count", "message")} == {
        "kind": "truncated-image",
        "severity": "error",
        "count": 1,
        "message": "1 image ends early",
    }
    assert error["examples"][0]["files"] == [str(faulty / "train/0002.jpg")]
    assert warning["kind"] == "box-outside"
    assert warning["examples"][0]["boxes"] == [{"label": "as labeled", "box": [100, 10, 160, 50]}]


def test_a_second_run_takes_the_next_folder(clean: Path, capsys: Capture) -> None:
    assert run(["check", str(clean)]) == run(["check", str(clean)]) == 0
    assert Path("runs/check-2/report.html").is_file()


def test_duplicate_ids_are_a_finding_with_its_place(clean: Path, capsys: Capture) -> None:
    labels = clean / "annotations" / "instances_train.json"
    content = json.loads(labels.read_text())
    content["images"][1]["id"] = content["images"][0]["id"]
    labels.write_text(json.dumps(content))
    assert run(["check", str(clean), "--json"]) == 0
    finding = json.loads(capsys.readouterr().out)["findings"][0]
    assert (finding["kind"], finding["count"]) == ("duplicate-id", 1)
    assert "images[1]: the image id 1 is that of images[0] too" in finding["examples"][0]["detail"]


def test_nothing_usable_is_listed_whole_and_exits_3(clean: Path, capsys: Capture) -> None:
    for split in ("train", "val"):
        labels = clean / "annotations" / f"instances_{split}.json"
        content = json.loads(labels.read_text())
        for entry in content["annotations"]:
            entry["bbox"] = "gone"
        labels.write_text(json.dumps(content))
    assert run(["check", str(clean), "--json"]) == 3
    findings = json.loads(capsys.readouterr().out)["findings"]
    malformed = next(f for f in findings if f["kind"] == "malformed-label")
    assert malformed["count"] == len(malformed["examples"]) > 10
    assert Path("runs/check/report.html").is_file()


def test_wrong_usage(capsys: Capture) -> None:
    assert run(["check"]) == 2
    assert run(["check", "nowhere"]) == 3
    assert "no such file or folder" in capsys.readouterr().err
    Path("empty").mkdir()
    assert run(["check", "empty", "--format", "yolp"]) == 2


def test_help_says_what_strict_counts(capsys: Capture) -> None:
    assert run(["check", "--help"]) == 0
    assert "Exit 3 on any error or warning" in capsys.readouterr().out
