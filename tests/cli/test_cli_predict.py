"""`dino predict` end to end: its outputs, its gates, and what it does with bad input."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from contextlib import AbstractContextManager
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
    err = end_of(process)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "results in runs/predict"
    assert len(lines(Path("runs/predict/predictions.jsonl").read_text())) == 1


def waiting_run(model: str, photo: Path, *arguments: str) -> subprocess.Popen[str]:
    """A run that has predicted `photo` and waits for the next path on stdin."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dino_cli", "predict", "-", "--model", model, "--json", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{photo}\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["source"] == str(photo)
    return process


def end_of(process: subprocess.Popen[str]) -> str:
    """What a run prints on stderr until it ends, while its stdin stays open."""
    assert process.stderr is not None
    err = process.stderr.read()
    process.wait()
    process.communicate()
    return err


def test_sigterm_is_an_interrupt(model: str, photos: list[Path]) -> None:
    process = waiting_run(model, photos[0])
    process.send_signal(signal.SIGTERM)
    err = end_of(process)
    assert process.returncode == 130
    assert err.splitlines()[-2:] == [
        "interrupted; the results up to here are kept",
        "results in runs/predict",
    ]
    assert len(lines(Path("runs/predict/predictions.jsonl").read_text())) == 1


def test_skip_done_continues_a_killed_run(model: str, photos: list[Path], capsys: Capture) -> None:
    out = ["--out", "out"]
    for photo in photos[:2]:  # killed twice: the second run repeats what the first one finished
        process = waiting_run(model, photo, *out, "--skip-done", "--save", "jsonl,csv")
        process.kill()
        process.communicate()
        (part,) = Path("out").glob(".predictions.jsonl.*.part")
        with part.open("a") as file:
            file.write('{"schema": 1, "sou')  # a line that was cut off
    assert run(["predict", "photos", "--model", model, *out, "--skip-done", "--json"]) == 0
    captured = capsys.readouterr()
    assert [r["source"] for r in lines(captured.out)] == [str(photos[2])]
    assert "2 skipped (done before)" in captured.err
    records = lines(Path("out/predictions.jsonl").read_text())
    assert [r["source"] for r in records] == [str(p) for p in photos]
    assert not list(Path("out").rglob(".*"))


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        '{"schema": 1, "source": "photos/image2.png"}',
        '{"schema": 1, "detections": []}',
        "[" * 100_000,
        '{"schema": 1, "source": "photos/image2.png", "frame": null, "time_s": "x", "width": 64, '
        '"height": 48, "model": "m", "detections": [], "ms": {}}',
        '{"schema": 1, "source": "photos/image2.png", "frame": null, "time_s": null, "width": 1, '
        '"height": 1, "model": "m", "ms": {}, "detections": [{"label": "square", "class_id": 1'
        + "0" * 400
        + ', "score": 0.5, "box": [0, 0, NaN, 1]}]}',
    ],
    ids=["empty", "no detections", "no source", "deep", "text as time", "huge number"],
)
def test_skip_done_predicts_the_images_of_broken_lines_again(
    line: str, model: str, capsys: Capture
) -> None:
    assert run(["predict", "photos/image1.png", "--model", model, "--out", "out"]) == 0
    path = Path("out/predictions.jsonl")
    path.write_text(f"{line}\n{path.read_text()}")
    capsys.readouterr()
    assert run(["predict", "photos", "--model", model, "--out", "out", "--skip-done"]) == 0
    err = capsys.readouterr().err
    assert "warning: out/predictions.jsonl line 1: 1 line cannot be read" in err
    assert "1 skipped" in err
    sources = {r["source"] for r in lines(path.read_text())}
    assert sources == {f"photos/image{i}.png" for i in range(3)}
    path.write_text(f"{line}\n")  # a file that is not ours at all is not replaced
    assert run(["predict", "photos", "--model", model, "--out", "out", "--skip-done"]) == 3
    assert "not a result of `dino predict`" in capsys.readouterr().err
    assert path.read_text() == f"{line}\n"


def test_skip_done_with_a_model_of_other_classes(model: str, capsys: Capture) -> None:
    arguments = ["predict", "photos", "--model", model, "--out", "out", "--threshold", "0"]
    assert run(arguments) == 0
    path = Path("out/predictions.jsonl")
    path.write_text(path.read_text().replace('"square"', '"cube"').replace('"disc"', '"cube"'))
    assert run([*arguments, "--skip-done", "--save", "jsonl,yolo"]) == 2
    assert "has no class 'cube'" in capsys.readouterr().err


def test_a_full_disk_keeps_the_finished_lines(
    model: str, capsys: Capture, disk_full_after: Callable[[int], AbstractContextManager[None]]
) -> None:
    arguments = ["predict", "photos", "--model", model, "--out", "out", "--save"]
    assert run([*arguments, "jsonl,json,csv"]) == 0
    whole = Path("out/predictions.jsonl").read_bytes()
    shutil.rmtree("out")
    with disk_full_after(len(whole) - 60):
        assert run([*arguments, "json,jsonl,csv"]) == 1
    err = capsys.readouterr().err
    assert "the disk is full; the results before are kept" in err
    kept = lines(Path("out/predictions.jsonl").read_text())
    assert [r["source"] for r in kept] == ["photos/image0.png", "photos/image1.png"]
    assert [r["source"] for r in json.loads(Path("out/predictions.json").read_text())] == [
        "photos/image0.png", "photos/image1.png",
    ]  # fmt: skip
    assert not list(Path("out").rglob(".*"))


def test_one_bad_file_gives_a_line_and_exit_code_3(model: str, capsys: Capture) -> None:
    Path("photos/a.jpg").symlink_to("gone.jpg")
    Path("photos/b.mp4").write_bytes(b"no video")
    os.mkfifo("photos/c.jpg")
    Path("list.txt").write_text("photos/gone.png\nphotos/image0.png\n")
    arguments = ["predict", "photos", "list.txt", "--model", model, "--json"]
    assert run([*arguments, "--save", ",".join(OUTPUTS)]) == 3
    captured = capsys.readouterr()
    assert ["error" in r for r in lines(captured.out)] == [True] * 3 + [False] * 3 + [True, False]
    assert "list.txt line 1: photos/gone.png: no such file" in captured.err
    assert "4 could not be read" in captured.err


def test_a_name_that_is_not_utf8(model: str, capsys: Capture) -> None:
    name = os.fsdecode(b"photos/caf\xe9\x1b.png")
    Path("photos/image0.png").rename(name)
    arguments = ["predict", name, "--model", model, "--json", "--threshold", "0"]
    assert run([*arguments, "--save", ",".join(OUTPUTS), "--out", "out"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["source"] == name
    out.encode()  # the byte is escaped
    for path in [Path("out/predictions.jsonl"), Path("out/predictions.json")]:
        written = json.loads(path.read_text(encoding="utf-8"))
        assert (written[0] if isinstance(written, list) else written)["source"] == name
    ElementTree.parse(next(Path("out/voc").iterdir()))
    assert run([*arguments, "--out", "out", "--skip-done"]) == 0
    assert "1 skipped" in capsys.readouterr().err
    Path(name).write_bytes(b"no image")
    assert run(arguments) == 3
    captured = capsys.readouterr()
    assert "warning: photos/caf" in captured.err and "\x1b" not in captured.err


def clip(width: int, frames: int) -> None:
    """Write clip.mp4, gray frames of 48 pixels in height at 10 frames per second."""
    av = pytest.importorskip("av")
    with av.open("clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = width, 48
        for i in range(frames):
            image = np.full((48, width, 3), 20 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def test_the_annotated_video_of_a_small_one_keeps_its_size(model: str) -> None:
    av = pytest.importorskip("av")
    clip(width=63, frames=5)
    assert run(["predict", "clip.mp4", "--model", model, "--threshold", "0"]) == 0
    with av.open("runs/predict/videos/clip.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (63, 48)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("predict - </dev/null", 3, "no path was given"),
        ("predict - <&-", 3, "no path was given"),
        ("predict photos --json >/dev/full", 1, "No space left on device"),
        ("predict photos --json >&-", 1, "stdout is closed"),
        ("predict photos >&-", 0, "3 images"),
        ("predict photos --json 2>&-", 0, ""),
        ("predict photos --json 2>/dev/full", 0, ""),
        ("predict nowhere.jpg --json >/dev/full", 3, "no such file"),
        ("models list >/dev/full", 1, "No space left on device"),
        ("--help >/dev/full", 1, "No space left on device"),
    ],
)
def test_closed_and_full_streams(command: str, code: int, words: str, model: str) -> None:
    chosen = f"--model {model}" if command.startswith("predict") else ""
    arguments, _, redirected = command.rpartition(" ")
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m dino_cli {arguments} {chosen} {redirected}"],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if "2>" in command:
        assert len(lines(done.stdout)) == 3


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
    clip(width=64, frames=10)
    assert run(["predict", "clip.mp4", "--model", model, "--every", "5", "--json"]) == 0
    records = lines(capsys.readouterr().out)
    assert [(r["frame"], r["time_s"]) for r in records] == [(0, 0.0), (5, 0.5)]
    assert Path("runs/predict/videos/clip.mp4").stat().st_size > 0


def test_the_help_lists_every_output(capsys: Capture) -> None:
    assert run(["predict", "--help"]) == 0
    text = capsys.readouterr().out
    for kind, row in OUTPUTS.items():
        assert any(line.split() == [kind, *row.help.split()] for line in text.splitlines())
