"""What `dino train` shows of a run: the choice of loggers, each class's AP, where the plots are."""

from __future__ import annotations

from pathlib import Path

import pytest

from dino_cli.app import run


@pytest.fixture
def arguments(data: Path, model: Path) -> list[str]:
    return ["train", str(data), "--model", str(model), "--steps", "2", "--batch", "2"]


def test_the_end_of_a_run_names_classes_and_pictures(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run([*arguments, "--out", str(out), "--logger", "csv"]) == 0
    lines = capsys.readouterr().err.splitlines()
    header = next(n for n, line in enumerate(lines) if line.split()[:2] == ["class", "AP"])
    shown = lines[header : header + 3]
    assert {line.split()[0] for line in shown[1:]} == {"square", "disc"}
    assert f"pictures in {out / 'plots'} and {out / 'samples'}" in lines
    assert set(shown) <= set((out / "log.txt").read_text().splitlines())
    assert not (out / "tensorboard").exists()


def test_without_plots_no_folder_is_named(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run([*arguments, "--out", str(out), "--set", "train.plots=false"]) == 0
    assert "pictures in" not in capsys.readouterr().err
    assert not (out / "plots").exists()
    assert list((out / "tensorboard").iterdir())  # the default where it is installed


@pytest.mark.parametrize(
    "option", [["--logger", "csv,tensorbord"], ["--set", "train.loggers=['tensorbord']"]]
)
def test_a_misspelt_logger_gets_the_nearest_name(
    option: list[str], arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--out", str(tmp_path / "run"), *option]) == 2
    assert "did you mean 'tensorboard'?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
