"""`dino export` end to end, and `dino predict` with the file that it wrote."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from factories import make_images

from dino_cli.app import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The file and the answer of an export, and beside the file the photos that verified it."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("export")
    make_images(folder / "photos", 3)
    paths = ["--verify", str(folder / "photos"), "--out", str(folder / "m.onnx")]
    with redirect_stdout(io.StringIO()) as out:
        assert run(["export", str(model), "--image-size", "48,64", *paths, "--json"]) == 0
    return folder / "m.onnx", json.loads(out.getvalue())


def test_export_and_its_gate(exported: tuple[Path, dict[str, Any]]) -> None:
    path, answer = exported
    assert answer["image_size"] == [48, 64]
    assert answer["parity"]["ok"] is True
    assert json.loads(path.with_name("m.parity.json").read_text()) == answer["parity"]
    assert path.stat().st_size == answer["bytes"]


def test_onnx_needs_no_torch_and_finds_the_same(
    exported: tuple[Path, dict[str, Any]], model: Path, capsys: Capture
) -> None:
    path, _ = exported
    photos = str(path.with_name("photos"))
    arguments = ["predict", photos, "--threshold", "0", "--max-detections", "3", "--json"]
    assert run([*arguments, "--model", str(model)]) == 0
    expected = capsys.readouterr().out
    code = (
        "import sys\n"
        "from dino_cli.app import run\n"
        f"assert run({[*arguments, '--model', str(path)]!r}) == 0\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env=dict(os.environ),
    )  # fmt: skip
    for ours, theirs in zip(expected.splitlines(), done.stdout.splitlines(), strict=True):
        pairs = zip(json.loads(ours)["detections"], json.loads(theirs)["detections"], strict=True)
        for one, other in pairs:
            assert one["label"] == other["label"]
            assert other["score"] == pytest.approx(one["score"], abs=2e-3)
            assert other["box"] == pytest.approx(one["box"], abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nowhere.safetensors"], 4),
        (["MODEL", "--image-size", "a,b"], 2),
        (["MODEL", "--opset", "3"], 2),
        (["MODEL", "--verify", "nowhere.jpg"], 3),
        (["MODEL", "--format", "tflite"], 2),
        (["MODEL", "--dtype", "int8"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_export_refuses(arguments: list[str], code: int, model: Path, capsys: Capture) -> None:
    assert run(["export", *(str(model) if a == "MODEL" else a for a in arguments)]) == code
    assert capsys.readouterr().err.startswith(("error:", "exporting"))
    assert not Path("runs").exists()
