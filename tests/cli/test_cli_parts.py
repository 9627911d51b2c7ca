"""Option parsing, settings, result folders and rendering, without a model."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from dino_cli import options, output, render
from dino_cli.gates import parse_gate
from dino_cli.settings import resolve_settings
from dino_core.config import TrainConfig
from dino_core.errors import ConfigError


def test_sizes() -> None:
    assert options.size_hw("384,512") == options.size_hw("384x512") == (384, 512)
    assert options.size_hw("320") == (320, 320)
    assert options.size_hw(None) is None
    for wrong in ("a", "1,2,3", "0", "", "-4"):
        with pytest.raises(ConfigError, match="expected H,W"):
            options.size_hw(wrong)


def test_choices() -> None:
    assert options.choices("json, csv", ("json", "csv", "yolo"), "--save") == ["json", "csv"]
    with pytest.raises(ConfigError, match=r"unknown name 'yoolo'.*did you mean 'yolo'"):
        options.choices("yoolo", ("json", "yolo"), "--save")
    with pytest.raises(ConfigError, match="nothing chosen"):
        options.choices(" , ", ("json",), "--save")


def test_settings_precedence(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(
        "[train]\nepochs = 3\nlr = 1e-3\nbatch = 2\nseed = 9\n[train.loss]\nfocal_gamma = 1.5\n"
        "[model]\nnum_queries = 50\n"
    )
    settings = resolve_settings(
        file,
        {"steps": 7, "batch": 4, "lr": 5e-4, "epochs": None},
        ["train.lr=1e-5", "train.loss.focal_alpha=0.5", "model.num_queries=60"],
    )
    train = settings.train
    assert (train.epochs, train.steps) == (None, 7)  # an option replaces the file's length
    assert (train.seed, train.batch, train.lr) == (9, 4, 1e-5)  # file, option, --set
    assert (train.loss.focal_gamma, train.loss.focal_alpha) == (1.5, 0.5)
    assert train.clip_norm == TrainConfig().clip_norm
    assert settings.model == {"num_queries": 60}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nlearning = 1\n", "unknown setting 'learning'"),
        ("[trian]\nlr = 1\n", "did you mean 'train'"),
        ("lr = 1\n", "write train.lr"),
        ("[train]\nlr = 'a'\n", "expected float"),
        ("[train]\nepochs = 1\nsteps = 2\n", "only one of"),
        ("[model]\nqueries = 2\n", "unknown setting 'queries'"),
        ("[train\n", "not valid TOML"),
    ],
)
def test_wrong_settings_files(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        resolve_settings(file, {}, [])


def test_folders_count_up() -> None:
    made = []
    for _ in range(3):
        with output.output_folder(None, "predict") as folder:
            (folder.path / "a").touch()
        made.append(folder.path.as_posix())
    assert made == ["runs/predict", "runs/predict-2", "runs/predict-3"]


def fail_in(path: Path, keep: bool) -> None:
    """Write a file into a result folder, then fail."""
    with output.output_folder(path, "x") as folder:
        (folder.path / "done").touch()
        if keep:
            folder.keep()
        raise ValueError("x")


def test_a_failed_start_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"):
        fail_in(tmp_path / "a" / "b", keep=False)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_result_leaves_no_folder(tmp_path: Path) -> None:
    with output.output_folder(tmp_path / "a", "x"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_kept_and_older_folders_stay(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").touch()
    for name, keep in (("new", True), ("old", False)):
        with pytest.raises(ValueError, match="x"):
            fail_in(tmp_path / name, keep)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [
        "new", "new/done", "old", "old/done", "old/file",
    ]  # fmt: skip


def test_a_file_cannot_be_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match="cannot be used"),
        output.output_folder(tmp_path / "file", "x"),
    ):
        pass


def test_plain_tables_and_durations() -> None:
    stream = io.StringIO()
    render.print_table(("class", "AP"), [("dog", "0.5"), ("elephant", None)], stream=stream)
    assert stream.getvalue().splitlines() == ["class      AP", "dog       0.5", "elephant    -"]
    assert [render.duration(s) for s in (4.6, 75, 3725)] == ["5s", "1m15s", "1h02m"]


def test_progress_in_a_log_is_no_flood(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(render.time, "monotonic", lambda: now)
    with render.ticker("images", 100) as progress:
        for _ in range(100):
            now += 0.5
            progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "20/100 images 2.0/s  ETA 40s"
    assert len(lines) == 5


def test_gates() -> None:
    counts = {"person": 2, "traffic light": 1}
    assert str(parse_gate(" traffic light >= 1 ")) == "traffic light>=1"
    for text, fails in {
        "person>1": True, "person>2": False, "person<=2": True, "person!=2": False,
        "person==2": True, "traffic light>=1": True, "dog<1": True, "any>2": True, "any>3": False,
    }.items():  # fmt: skip
        assert parse_gate(text).fails(counts) is fails, text
    for wrong in ("person", "person>", ">0", "person>x", "person=1", "person>-1"):
        with pytest.raises(ConfigError, match="expected CLASS"):
            parse_gate(wrong)
