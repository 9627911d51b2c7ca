"""Each command end to end with a tiny model and drawn shapes: results, exit codes, words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import CLASS_NAMES, make_coco_dataset
from golden import other_codes

from dino_cli.app import run
from dino_core.checkpoints.header import read_header
from dino_core.checkpoints.io import load_checkpoint, save_checkpoint

Capture = pytest.CaptureFixture[str]


def test_env(capsys: Capture) -> None:
    assert run(["env", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    import torch

    assert report["packages"]["torch"] == torch.__version__.split("+")[0]
    assert report["devices"][0] == {"name": "cpu"}
    assert report["attention"][0]["name"] in ("compiled", "reference")
    assert report["attention"][0]["encoder_ms"] > 0
    assert run(["env"]) == 0
    assert "attention:\n" in capsys.readouterr().out


def test_env_tells_a_wrong_backend(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINO_OPS", "fast")
    assert run(["env", "--json"]) == 0
    attention = json.loads(capsys.readouterr().out)["attention"][0]
    assert attention["name"] is None
    assert "DINO_OPS" in attention["reason"]


def test_models(model: Path, capsys: Capture) -> None:
    assert run(["models"]) == run(["models", "list"]) == 0
    assert "dino-r50-4scale" in capsys.readouterr().out
    assert run(["models", "list", "--json"]) == 0
    assert {m["name"] for m in json.loads(capsys.readouterr().out)["models"]} >= {"dino-nano"}
    assert run(["models", "info", str(model), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["classes"]["names"] == list(CLASS_NAMES)
    assert len(described["sha256"]) == 64
    assert run(["models", "info", str(model)]) == 0
    assert "classes: square, disc" in capsys.readouterr().out
    assert run(["models", "info", "dino-r50-4scale", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["backbone"] == "resnet50"


def test_models_import_refuses(model: Path, capsys: Capture) -> None:
    Path("not.pth").write_bytes(b"not a checkpoint")
    assert run(["models", "import", "not.pth", "out.safetensors"]) == 4
    assert run(["models", "import", "missing.pth", "out.safetensors"]) == 4
    assert run(["models", "import", "not.pth", "out.onnx"]) == 2
    assert run(["models", "import", "not.pth", str(model)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert not Path("out.safetensors").exists()


def test_models_import_tells_what_it_took(capsys: Capture) -> None:
    shapes = other_codes.shapes("detrex_4scale_r50")
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    torch.save({"model": state, "ema_state": state}, "detrex.pth")
    assert run(["models", "import", "detrex.pth", "a.safetensors", "--json"]) == 0
    output = capsys.readouterr()
    provenance = json.loads(output.out)["provenance"]
    assert (provenance["layout"], provenance["weights"]) == ("detrex", "model")
    assert "temperature 10000, offset -0.5 (detrex's usual one" in output.err
    options = ["--position-temperature", "20", "--position-offset", "0", "--ema"]
    assert run(["models", "import", "detrex.pth", "b.safetensors", *options]) == 0
    assert "temperature 20, offset 0 (as requested)" in capsys.readouterr().err
    described = read_header(Path("b.safetensors"))
    assert described.model.position_temperature == 20
    assert described.provenance["weights"] == "ema_state"
    for name in ("a", "b"):  # 190 MB each
        Path(f"{name}.safetensors").unlink()
    bad = ["models", "import", "detrex.pth", "c.safetensors", "--position-temperature", "0"]
    assert run(bad) == 2
    assert "must be above 0" in capsys.readouterr().err


def test_convert_there_and_back(data: Path, capsys: Capture) -> None:
    assert run(["convert", str(data), "yolo", "--to", "yolo"]) == 0
    capsys.readouterr()
    assert run(["convert", "yolo", "coco", "--to", "coco", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["images"] == {"train": 6, "val": 3}
    for split in ("train", "val"):
        name = f"annotations/instances_{split}.json"
        before, after = (json.loads((d / name).read_text()) for d in (data, Path("coco")))
        boxes = [sorted(tuple(a["bbox"]) for a in x["annotations"]) for x in (before, after)]
        assert boxes[1] == [pytest.approx(box, abs=0.01) for box in boxes[0]]
    assert run(["convert", str(data), "yolo", "--to", "coco"]) == 2
    assert "not empty" in capsys.readouterr().err


def test_convert_through_every_form(data: Path, capsys: Capture) -> None:
    steps = ((str(data), "voc"), ("voc", "csv"), ("csv", "yolo"), ("yolo", "voc2"))
    for source, target in steps:
        assert run(["convert", source, target, "--to", target.rstrip("2"), "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["images"] == {"train": 6, "val": 3}
        assert answer["from"] == ("coco" if source == str(data) else source)
    for file in Path("voc/Annotations").iterdir():
        assert Path("voc2/Annotations", file.name).read_text() == file.read_text()
    assert run(["convert", "csv", "again", "--to", "csv", "--format", "voc"]) == 3
    assert "no Pascal VOC data set found" in capsys.readouterr().err
    assert not Path("again").exists()


def test_convert_lists_what_is_lost(data: Path, capsys: Capture) -> None:
    assert run(["convert", str(data), "voc", "--to", "voc"]) == 0
    file = next(Path("voc/Annotations").iterdir())
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    capsys.readouterr()
    assert run(["convert", "voc", "csv", "--to", "csv"]) == 0
    captured = capsys.readouterr()
    assert "the flag 'difficult' of 1 box is lost: CSV has no place for it" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("format", ["voc", "csv"])
def test_eval_of_other_formats(model: Path, data: Path, format: str, capsys: Capture) -> None:
    assert run(["convert", str(data), format, "--to", format]) == 0
    capsys.readouterr()
    answers = []
    for source in (str(data), format):
        assert run(["eval", str(model), source, "--json", "--out", f"eval-{len(answers)}"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert all(
        answers[0][key] == pytest.approx(answers[1][key]) for key in ("ap", "ap50", "ar_100")
    )
    assert answers[1]["images"] == 3


def test_eval_on_what_training_set_apart(model: Path, tmp_path: Path, capsys: Capture) -> None:
    checkpoint = load_checkpoint(model)
    trained = replace(checkpoint.meta, training={"set_apart": {"share": 0.5, "seed": 1}})
    save_checkpoint(Path("trained.safetensors"), checkpoint.state_dict, trained)
    data = make_coco_dataset(tmp_path / "all", [("train", 6)])
    for name, images in (("trained.safetensors", 3), (str(model), 1)):
        assert run(["eval", name, str(data), "--json", "--out", f"measured-{images}"]) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out)["images"] == images
        assert f"{images} of 6 images were set apart" in captured.err


def test_convert_of_nothing(capsys: Capture) -> None:
    assert run(["convert", "nowhere", "out", "--to", "coco", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"] == 3
    assert not Path("out").exists()


def test_eval(model: Path, data: Path, capsys: Capture) -> None:
    assert run(["eval", str(model), str(data), "--json", "--min-ap", "0.99"]) == 5
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert (answer["schema"], answer["split"], answer["images"]) == (1, "val", 3)
    assert {"ap", "ap50", "ap75", "ar_1", "ar_100", "ar_large", "ms_per_image"} < answer.keys()
    assert answer["per_class"].keys() == set(CLASS_NAMES)
    assert "gate not met" in captured.err
    predictions = json.loads(Path("runs/eval/predictions.json").read_text())
    assert predictions[0].keys() >= {"image_id", "category_id", "bbox", "score"}
    assert {p["category_id"] for p in predictions} <= {1, 2}
    assert run(["eval", str(model), str(data), "--out", "table"]) == 0
    out = capsys.readouterr().out
    assert "AP  (IoU 0.50:0.95)" in out
    assert "square" in out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nowhere.safetensors", "DATA"], 4),
        (["MODEL", "nowhere"], 3),
        (["MODEL", "DATA", "--split", "test"], 3),
        (["MODEL", "DATA", "--device", "toaster"], 2),
        (["MODEL", "DATA", "--batch", "0"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_eval_refuses(
    arguments: list[str], code: int, model: Path, data: Path, capsys: Capture
) -> None:
    known = {"MODEL": str(model), "DATA": str(data)}
    assert run(["eval", *(known.get(a, a) for a in arguments), "--json"]) == code
    assert json.loads(capsys.readouterr().out)["error"] == code
    assert not Path("runs").exists()


def test_train_then_resume(model: Path, data: Path, capsys: Capture) -> None:
    length = ["--batch", "2", "--set", "train.log_every_steps=1"]
    assert run(["train", str(data), "--model", str(model), "--steps", "2", *length]) == 0
    err = capsys.readouterr().err
    assert "6 images, 9 boxes, 0 images without boxes" in err
    assert "step 2/2" in err
    assert err.endswith("results in runs/train\n")
    assert {p.name for p in Path("runs/train").iterdir()} >= {
        "best.safetensors", "last.safetensors", "state", "config.toml", "metrics.csv",
        "metrics.jsonl", "summary.json", "log.txt",
    }  # fmt: skip
    assert run(["train", "--resume", "runs/train", "--steps", "3"]) == 0
    assert "resumed   after step 2" in capsys.readouterr().err
    assert json.loads(Path("runs/train/summary.json").read_text())["steps"] == 3
    config = ["--config", "runs/train/config.toml", "--steps", "1"]
    assert run(["train", str(data), "--model", str(model), *config]) == 0
    assert Path("runs/train-2").is_dir()
    assert run(["eval", "runs/train/best.safetensors", str(data)]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["DATA", "--epochs", "1", "--steps", "1"], 2, "only one of"),
        (["DATA", "--batch", "many"], 2, "a number or auto"),
        (["DATA", "--model", "dino-nanoo"], 4, "did you mean 'dino-nano'"),
        (["DATA", "--steps", "1", "--device", "toaster"], 2, "toaster"),
        (["DATA", "--set", "preprocess.max_side=100"], 2, "--image-size"),
        (["nowhere"], 3, "nowhere"),
        ([], 2, "no data given"),
        (["--resume", "nowhere"], 2, "no training run"),
        (["--resume", "nowhere", "--out", "x"], 2, "--out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_train_refuses(
    arguments: list[str], code: int, words: str, model: Path, data: Path, capsys: Capture
) -> None:
    chosen = [str(data) if a == "DATA" else a for a in arguments]
    chosen += [] if "--model" in chosen else ["--model", str(model)]
    assert run(["train", *chosen]) == code
    assert words in capsys.readouterr().err
    assert not Path("runs").exists()


def test_train_refuses_a_set_without_boxes(model: Path, capsys: Capture) -> None:
    file = make_coco_dataset(Path("empty")) / "annotations/instances_train.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    assert run(["train", "empty", "--model", str(model), "--steps", "1"]) == 3
    assert "no boxes" in capsys.readouterr().err
    assert not Path("runs").exists()
