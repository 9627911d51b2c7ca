"""Model files of other tools are named with the way out; a run's folder stands for its best one."""

from __future__ import annotations

import os
import sys
import types
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from factories import make_images, tiny_checkpoint

from dino_cli.app import run
from dino_core.checkpoints.zoo import load, resolve
from dino_core.errors import CheckpointError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "content", "words", "hint"),
    [
        ("m.safetensors", LFS, "a Git LFS pointer", "git lfs pull"),
        ("m.pth", LFS, "a Git LFS pointer", "git lfs pull"),
        ("m.onnx", LFS, "a Git LFS pointer", "git lfs pull"),
        ("m.pth", b"\n<!DOCTYPE html><html>", "a web page", "download the file itself"),
        ("m.pth", b"<html>", "a web page", "download the file itself"),
        ("m.engine", b"ftrt" + bytes(99), "a TensorRT engine", ".onnx"),
        ("m.plan", bytes(99), "a TensorRT engine", ".onnx"),
        ("m.tflite", b"\x1c\0\0\0TFL3" + bytes(99), "a TensorFlow Lite model", ".onnx"),
        ("m.bin", b"\x1c\0\0\0TFL3" + bytes(99), "a TensorFlow Lite model", ".onnx"),
        ("m.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "Keras", ".onnx"),
        ("m.pth", b"\x89HDF\r\n\x1a\n" + bytes(99), "Keras", ".onnx"),
        ("m.param", b"7767517\n", "an ncnn model", ".onnx"),
        ("m.bin", bytes(99), "ncnn, OpenVINO", ".onnx"),
        ("m.pb", b"\x08\x01", "a TensorFlow model", ".onnx"),
        ("m.mlmodel", b"\x08\x01", "a Core ML model", ".onnx"),
        ("m.yaml", b"nc: 80\n", "holds no weights", ".safetensors"),
        ("m.gz", b"\x1f\x8b\x08" + bytes(99), "an archive", "unpack"),
        ("photo.jpg", b"\xff\xd8\xff\xe0" + bytes(99), "an image", "dino predict IMAGE"),
    ],
)
def test_files_of_other_tools(
    tmp_path: Path, name: str, content: bytes, words: str, hint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / name
    path.write_bytes(content)
    image = make_images(tmp_path, 1)[0]
    out = str(tmp_path / "out")
    assert run(["predict", str(image), "--model", str(path), "--out", out]) == 4
    error = capsys.readouterr().err
    assert f"{path}: " in error and words in error and hint in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "words", "hint"),
    [
        (["metadata.json", "config.json", "model.weights.h5"], "Keras", ".onnx"),
        (["m/data.pkl", "m/constants.pkl", "m/code/x.py"], "TorchScript", "torch.save"),
        (["run/best.pth", "run/log.txt"], "a zip archive", "run/best.pth"),
        (["a.txt"], "a zip archive", "unpack"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".zip", ".safetensors", ".keras"])
def test_archives(tmp_path: Path, names: list[str], words: str, hint: str, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    with pytest.raises(CheckpointError, match=words) as error:
        load(path)
    assert hint in error.value.hint


def whole_object(path: Path, module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save a whole network of a class in a package that exists only while it is written."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        place = ".".join(parts[:count])
        monkeypatch.setitem(sys.modules, place, types.ModuleType(place))
    cls = type(name, (torch.nn.Linear,), {"__module__": module})
    setattr(sys.modules[module], name, cls)
    torch.save({"epoch": 1, "model": cls(2, 2), "ema": None, "train_args": {}}, path)
    return path


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("ultralytics.nn.tasks", r"a checkpoint of Ultralytics \(YOLO\), which dino cannot run"),
        ("models.yolo", "a checkpoint of YOLOv5"),
        ("somewhere.else", "an object of the class 'somewhere.else.Net'"),
    ],
)
def test_whole_networks_as_objects(
    tmp_path: Path, module: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = whole_object(tmp_path / "yolo11n.pt", module, "Net", monkeypatch)
    with pytest.raises(CheckpointError, match=words) as error:
        load(path)
    assert error.value.hint


@pytest.mark.parametrize(
    ("name", "project"),
    [
        ("model.0.conv.weight", "Ultralytics"),
        ("module.bert.embeddings.word_embeddings.weight", "Grounding DINO"),
        ("blocks.0.attn.qkv.weight", "DINOv2"),
        ("roi_heads.box_predictor.cls_score.weight", "Faster R-CNN"),
        ("model.backbone.conv_encoder.model.conv1.weight", "Transformers"),
        ("transformer.decoder.layers.0.multihead_attn.in_proj_weight", "DETR"),
        ("layer1.0.conv1.weight", "ResNet"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin", ".safetensors"])
def test_weights_of_other_networks(tmp_path: Path, name: str, project: str, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    state = {name: torch.zeros(2), "other": torch.zeros(1)}
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match=f"a checkpoint of .*{project}"):
        load(path)


def test_a_wrong_suffix(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a file of torch\.save.*ends in \.pth"):
        load(tmp_path / "a.safetensors")
    tiny_checkpoint(tmp_path / "b.safetensors").rename(tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"a safetensors file.*ends in \.safetensors"):
        load(tmp_path / "b.pth")


@pytest.mark.parametrize("name", ["m.safetensors", "m.pth", "m.onnx", "m"])
def test_what_is_no_regular_file(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / name)
    assert run(["models", "verify", str(tmp_path / name)]) == 4
    assert "not a regular file" in capsys.readouterr().out
    (tmp_path / "link.pth").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load(tmp_path / "link.pth")


def test_names_of_other_models(tmp_path: Path) -> None:
    for name in ("yolo11n.pt", "yolov8s", "facebook/detr-resnet-50", "rtdetr-l.pt"):
        with pytest.raises(CheckpointError, match=r"no model that dino has.*dino models list"):
            resolve(name)


def test_the_folder_of_a_run_stands_for_its_best_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(CheckpointError, match="no such file"):
        resolve(folder)
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"a folder.*best\.safetensors"):
        resolve(folder)
    tiny_checkpoint(folder / "last.safetensors", seed=1)
    with pytest.raises(CheckpointError, match=r"a folder.*last\.safetensors"):
        resolve(folder)
    best = tiny_checkpoint(folder / "best.safetensors")
    assert resolve(folder) == best
    image, out = make_images(tmp_path / "photos", 1)[0], str(tmp_path / "out")
    for command in (
        ["models", "verify", str(folder)],
        ["models", "info", str(folder)],
        ["models", "path", str(folder)],
        ["predict", str(image), "--model", str(folder), "--out", out],
    ):
        assert run(command) == 0, command
    assert str(best) in capsys.readouterr().out
