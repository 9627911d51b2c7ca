"""`dino predict` end to end: its outputs, its gates, and what it does with bad input."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import make_images

from dino_cli.app import run
from dino_core.inference.outputs.table import OUTPUTS

Capture = pytest.CaptureFixture[str]
ENVIRONMENT = dict(os.environ)
KEYS = {
    "schema", "source", "frame", "time_s", "width", "height", "model", "detections", "ms",
}  # fmt: skip


@pytest.fixture
def model(model: Path) -> str:
    return str(model)


@pytest.fixture(autouse=True)
def photos() -> list[Path]:
    return make_images(Path("photos"), 3)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_lines_and_pictures(model: str, capsys: Capture) -> None:
    arguments = ["predict", "photos", "--model", model, "--json", "--threshold", "0"]
    assert run([*arguments, "--max-detections", "4"]) == 0
    captured = capsys.readouterr()
    records = lines(captured.out)
    assert [r["source"] for r in records] == [f"photos/image{i}.png" for i in range(3)]
    for record in records:
        assert record.keys() == KEYS
        assert (record["schema"], record["width"], record["height"]) == (1, 64, 48)
        assert len(record["detections"]) == 4
        for found in record["detections"]:
            assert found.keys() == {"label", "class_id", "score", "box"}
            x1, y1, x2, y2 = found["box"]
            assert 0 <= x1 <= x2 <= 64
            assert 0 <= y1 <= y2 <= 48
    assert captured.err.splitlines()[-1] == "results in runs/predict"
    assert lines(Path("runs/predict/predictions.jsonl").read_text()) == records
    assert sorted(p.name for p in Path("runs/predict/images").iterdir()) == [
        "image0.jpg", "image1.jpg", "image2.jpg",
    ]  # fmt: skip


def test_without_json_stdout_is_empty(model: str, capsys: Capture) -> None:
    assert run(["predict", "photos/image0.png", "--model", model, "--save", "csv,coco"]) == 0
    assert capsys.readouterr().out == ""
    assert {p.name for p in Path("runs/predict").iterdir()} == {
        "predictions.csv", "predictions.coco.json",
    }  # fmt: skip


def test_unreadable_files_do_not_stop_the_run(model: str, capsys: Capture) -> None:
    Path("photos/broken.png").write_bytes(b"no picture at all")
    assert run(["predict", "photos", "--model", model, "--json"]) == 3
    captured = capsys.readouterr()
    records = lines(captured.out)
    assert len(records) == 4
    assert "error" in records[0]
    assert records[0]["detections"] == []
    assert all("error" not in record for record in records[1:])
    assert "warning: photos/broken.png: not an image" in captured.err
    assert "1 could not be read" in captured.err


def test_skip_done_takes_only_what_is_new(model: str, capsys: Capture) -> None:
    arguments = ["predict", "photos", "--model", model, "--out", "out", "--skip-done", "--json"]
    assert run(["predict", "photos/image1.png", "--model", model, "--out", "out"]) == 0
    capsys.readouterr()
    assert run(arguments) == 0
    captured = capsys.readouterr()
    done = [r["source"] for r in lines(captured.out)]
    assert done == ["photos/image0.png", "photos/image2.png"]
    assert "1 skipped (done before)" in captured.err
    assert len(lines(Path("out/predictions.jsonl").read_text())) == 3
    assert run(arguments) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("gate", "code"),
    [("any>=6", 5), ("any>6", 0), ("square>6", 0), ("square<0", 0), ("disc<=6", 5)],
)
def test_fail_if(gate: str, code: int, model: str, capsys: Capture) -> None:
    limits = ["--threshold", "0", "--max-detections", "2"]
    assert run(["predict", "photos", "--model", model, *limits, "--fail-if", gate]) == code
    assert ("gate not met" in capsys.readouterr().err) is (code == 5)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere.jpg"], 3, "nowhere.jpg"),
        (["photo"], 3, "did you mean 'photos'"),
        (["photos", "--classes", "sqare"], 2, "did you mean 'square'"),
        (["photos", "--fail-if", "sqare>0"], 2, "did you mean 'square'"),
        (["photos", "--fail-if", "square"], 2, "expected CLASS"),
        (["photos", "--save", "jsn"], 2, "did you mean 'json'"),
        (["photos", "--threshold", "2"], 2, "threshold"),
        (["photos", "--skip-done"], 2, "--out"),
        (["photos", "--device", "toaster"], 2, "toaster"),
        (["photos", "--model", "dino-nan"], 4, "did you mean 'dino-nano'"),
        (["photos", "--model", "photos/image0.png"], 4, "photos/image0.png"),
        (["photos", "--model", "nowhere.onnx"], 4, "nowhere.onnx"),
        ([], 2, "SOURCE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refusals(arguments: list[str], code: int, words: str, model: str, capsys: Capture) -> None:
    chosen = [] if "--model" in arguments else ["--model", model]
    assert run(["predict", *arguments, *chosen, "--json"]) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert json.loads(captured.out)["error"] == code
    assert not Path("runs").exists()


def test_paths_on_stdin(model: str, photos: list[Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dino_cli", "predict", "-", "--model", model, "--json"],
        input=f"{photos[2]}\n{photos[0]}\n",
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    assert [r["source"] for r in lines(done.stdout)] == [str(photos[2]), str(photos[0])]


def test_an_interrupt_keeps_what_was_finished(model: str, photos: list[Path]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dino_cli", "predict", "-", "--model", model, "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        # A shell's background job ignores the signal, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{photos[0]}\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["source"] == str(photos[0])
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "results in runs/predict"
    assert len(lines(Path("runs/predict/predictions.jsonl").read_text())) == 1


def test_an_interrupt_while_a_line_is_written(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            super().write(text)
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdout", Terminal())
    assert run(["predict", "photos", "--model", model, "--json"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "results in runs/predict"
    assert len(lines(Path("runs/predict/predictions.jsonl").read_text())) == 1


def test_every_nth_frame_of_a_video(model: str, capsys: Capture) -> None:
    av = pytest.importorskip("av")
    with av.open("clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 48
        for shade in range(0, 200, 20):
            frame = np.full((48, 64, 3), shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    assert run(["predict", "clip.mp4", "--model", model, "--every", "5", "--json"]) == 0
    records = lines(capsys.readouterr().out)
    assert [(r["frame"], r["time_s"]) for r in records] == [(0, 0.0), (5, 0.5)]
    assert Path("runs/predict/videos/clip.mp4").stat().st_size > 0


def test_the_help_lists_every_output(capsys: Capture) -> None:
    assert run(["predict", "--help"]) == 0
    text = capsys.readouterr().out
    for kind, row in OUTPUTS.items():
        assert any(line.split() == [kind, *row.help.split()] for line in text.splitlines())
