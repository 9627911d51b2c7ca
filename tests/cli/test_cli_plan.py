"""`dino train --plan` and `--config RECIPE`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from factories import make_coco_dataset
from PIL import Image

from dino_cli.app import run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco_dataset(tmp_path_factory.mktemp("data"), (("train", 8), ("val", 2)))


def plan_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run(["train", *arguments, "--plan", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_and_nothing_written(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = plan_of(capsys, str(data), "--model", str(model), "--device", "cpu", "--epochs", "3")
    assert list(tmp_path.iterdir()) == []
    assert (answer["schema"], answer["device"], answer["devices"]) == (1, "cpu", 1)
    assert answer["data"]["splits"]["train"]["images"] == 8
    assert (answer["epochs"], answer["steps"], answer["minutes"]) == (3, 6, None)
    assert answer["images_per_step"] == answer["train"]["batch"] == 4
    decisions = {d["name"]: d for d in answer["decisions"]}
    assert decisions["epochs"]["reason"].startswith("as asked")
    assert decisions["augment"]["value"] == "default" == answer["train"]["augment"]
    assert decisions["augment"]["option"] == "--augment"
    assert answer["worst_batch"]["images"] == 4
    assert answer["worst_batch"]["memory_mb"] > 0
    assert answer["forecast"]["steps"] == 6 and answer["forecast"]["seconds"] > 0
    assert isinstance(answer["findings"], list)


def test_lines_for_people(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["train", str(data), "--model", str(model), "--device", "cpu", "--plan"]
    assert run([*arguments, "--minutes", "2", "--batch", "2", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert any(line.split()[:4] == ["batch", "2", "as", "asked"] for line in lines)
    assert any(line.startswith("  augment") and "(--augment)" in line for line in lines)
    assert "schedule  2 minutes, 4 steps per epoch, 2 images per step" in lines
    assert any(line.startswith("memory ") and "2 x 64x64" in line for line in lines)
    assert "nothing was written" in lines[-1]
    assert not out.exists()


@pytest.mark.parametrize("size", [32, 320])
def test_boxes_are_tiny_at_the_size_of_the_run(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    data = tmp_path / "data"
    for name in ("images", "labels"):
        (data / name).mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (320, 320)).save(data / f"images/{i}.png")
        (data / f"labels/{i}.txt").write_text("0 0.5 0.5 0.1 0.1\n")  # 32 px, or 3.2
    answer = plan_of(capsys, str(data), "--model", str(model), "--image-size", str(size))
    assert ("box-tiny" in {finding["kind"] for finding in answer["findings"]}) == (size == 32)


def test_more_objects_than_queries(
    data: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(data), "--model", str(model), "--device", "cpu", "--plan"]
    for queries, warned in ((1, True), (2, False)):
        assert run([*arguments, "--set", f"model.num_queries={queries}"]) == 0
        text = capsys.readouterr().out
        line = "an image has 2 objects, but the model finds at most 1: --set model.num_queries=50"
        assert (line in text) == warned


def test_a_recipe_by_name_and_what_wins_over_it(
    data: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(data), "--model", str(model), "--device", "cpu"]
    answer = plan_of(capsys, *arguments, "--config", "r50-4scale-12ep")
    train = answer["train"]
    assert (train["lr"], train["schedule"], train["ema"]) == (1e-4, "step", False)
    assert (answer["epochs"], answer["images_per_step"]) == (12, 16)
    answer = plan_of(
        capsys, *arguments, "--config", "r50-4scale-12ep", "--steps", "5", "--lr", "0.5",
        "--set", "train.images_per_step=8",
    )  # fmt: skip
    assert (answer["steps"], answer["train"]["lr"], answer["images_per_step"]) == (5, 0.5, 8)


def test_a_recipe_brings_its_model(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights are not in this package, and that is what the error is about."""
    assert run(["train", str(data), "--plan", "--config", "r50-4scale-24ep"]) == 4
    assert "dino-r50-4scale" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "r50-4scale-13ep"], "did you mean 'r50-4scale-"),
        (["--json"], "--json goes with --plan"),
        (["--plan", "--batch", "0"], "expected a number or auto"),
        (["--plan", "--set", "train.images_per_step=3", "--batch", "2"], "not a multiple of batch"),
    ],
)
def test_wrong_usage(
    arguments: list[str], words: str, data: Path, model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "run"
    code = run(["train", str(data), "--model", str(model), "--out", str(out), *arguments])
    assert code == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_a_plan_of_a_folder_that_is_in_use(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    arguments = ["train", str(data), "--model", str(model), "--plan", "--out", str(tmp_path)]
    assert run(arguments) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_faulty_recipe_table(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[recipe]\nmodle = "dino-nano"\n')
    assert run(["train", str(data), "--plan", "--config", str(file)]) == 2
    assert "did you mean 'model'" in capsys.readouterr().err


def test_another_backbone(data: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One whose weights are random learns at the full rate."""
    arguments = [str(data), "--model", str(model), "--device", "cpu", "--steps", "1"]
    assert plan_of(capsys, *arguments)["train"]["backbone_lr_factor"] == 0.5
    answer = plan_of(capsys, *arguments, "--backbone", "test_resnet")
    assert answer["train"]["backbone_lr_factor"] == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--backbone", "test_resnt"], "did you mean 'test_resnet'"),
        (["--backbone", "test_vit"], "plain vision transformer"),
        (["--backbone", "test_resnet", "--set", "model.backbone=resnet18"], "give one of them"),
        (["--backbone", "test_resnet", "--resume", "runs/x"], "leave out --backbone"),
    ],
)
def test_backbones_that_cannot_be(
    data: Path, model: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(data), "--model", str(model), *options]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
