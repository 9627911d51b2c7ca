"""Classes and where weights are from, through training, prediction and evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from factories import make_coco_dataset, make_images, tiny_checkpoint

from dino_cli.app import run
from dino_core.checkpoints.io import load_checkpoint
from dino_core.detections import ClassMap
from dino_core.files import sha256_of

Capture = pytest.CaptureFixture[str]
IDS = {1: 7, 2: 90}  # square, disc; and 3: triangle, of which there are none in val
SHORT = ["--steps", "1", "--batch", "2", "--device", "cpu", "--dtype", "fp32", "--no-ema",
         "--set", "train.probe=false", "--set", "train.plots=false", "--logger", "csv"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shapes with the category ids 3, 7, 90."""
    root = make_coco_dataset(tmp_path_factory.mktemp("data") / "shapes")
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        for one in content["annotations"]:
            one["category_id"] = IDS[one["category_id"]]
        content["categories"] = [
            {"id": 90, "name": "disc"}, {"id": 3, "name": "triangle"}, {"id": 7, "name": "square"},
        ]  # fmt: skip
        content["annotations"][0]["category_id"] = 3
        path.write_text(json.dumps(content))
    return root


def test_ids_and_origin_go_all_the_way(data: Path, tmp_path: Path, capsys: Capture) -> None:
    # A model with other classes, another order and other ids.
    start = tiny_checkpoint(tmp_path / "start.safetensors", ClassMap(("Discs", "square"), (3, 90)))
    command = ["train", str(data), "--model", str(start), *SHORT]
    assert run([*command, "--out", "one", "--lr", "1e-12"]) == 0
    said = capsys.readouterr().err
    assert "classes copied by name: 1 (square)" in said
    assert "classes that start at random: 2 (triangle, disc)" in said
    assert "may know disc (Discs)" in said and "--class-alias 'disc=Discs'" in said
    one = load_checkpoint(Path("one/last.safetensors"))
    rows = dict(zip(one.meta.classes.names, one.meta.classes.source_ids, strict=True))
    assert rows == {"triangle": 3, "square": 7, "disc": 90}
    before = load_checkpoint(start).state_dict["decoder.class_embed.0.weight"]
    after = one.state_dict["decoder.class_embed.0.weight"]
    square, disc = one.meta.classes.names.index("square"), one.meta.classes.names.index("disc")
    torch.testing.assert_close(after[square], before[1])
    assert not torch.allclose(after[disc], before[0], atol=1e-3)

    again = ["train", str(data), "--model", "one/last.safetensors", *SHORT, "--out", "two"]
    assert run(again) == 0
    assert "classes copied" not in capsys.readouterr().err  # the same classes: everything is copied
    make_images(tmp_path / "photos")
    predict = ["predict", "photos", "--model", "two/last.safetensors", "--threshold", "0"]
    assert run([*predict, "--save", "jsonl,coco", "--out", "seen"]) == 0
    names = {3: "triangle", 7: "square", 90: "disc"}
    lines = Path("seen/predictions.jsonl").read_text().splitlines()
    found = [d for line in lines for d in json.loads(line)["detections"]]
    assert {d["class_id"] for d in found} == {3, 7, 90}
    assert all(names[d["class_id"]] == d["label"] for d in found)
    coco = json.loads(next(Path("seen").glob("*coco*.json")).read_text())
    annotations = coco["annotations"] if isinstance(coco, dict) else coco
    assert {a["category_id"] for a in annotations} == {3, 7, 90}
    assert run(["eval", "two/last.safetensors", str(data), "--out", "measured"]) == 0
    results = json.loads(Path("measured/predictions.json").read_text())
    assert {r["category_id"] for r in results} == {3, 7, 90}

    capsys.readouterr()
    assert run(["models", "info", "two/last.safetensors", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["provenance"]
    assert told["run"] == "two" and told["start"] == "one/last.safetensors"
    assert [entry["file"] for entry in told["history"]] == ["start.safetensors", "last.safetensors"]
    assert [entry["sha256"] for entry in told["history"]] == [
        sha256_of(start), sha256_of(Path("one/last.safetensors")),
    ]  # fmt: skip
    second = told["history"][1]
    assert second["training"]["data"] == "shapes" and second["training"]["steps"] == 1
    assert second["provenance"]["run"] == "one" and "history" not in second["provenance"]
    assert run(["models", "info", "two/last.safetensors"]) == 0
    assert sha256_of(start) in capsys.readouterr().out


def test_an_alias_is_taken_when_asked_for(data: Path, tmp_path: Path, capsys: Capture) -> None:
    start = tiny_checkpoint(tmp_path / "start.safetensors", ClassMap(("Discs", "square"), (3, 90)))
    command = ["train", str(data), "--model", str(start), *SHORT, "--plan"]
    assert run([*command, "--class-alias", "disc=Discs"]) == 0
    said = "".join(capsys.readouterr())
    assert "classes copied by name: 2 (square, disc (as Discs))" in said
    assert "classes that start at random: 1 (triangle)" in said and "may know" not in said
    assert run([*command, "--class-alias", "disk=Discs"]) == 2
    assert "did you mean 'disc'" in capsys.readouterr().err
    assert run([*command, "--class-alias", "disc=Discs", "--weights", "none"]) in (2, 4)
