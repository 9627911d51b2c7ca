"""Runs that are killed, ended or run out of disk go on and end as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from factories import make_coco_dataset
from processes import TESTS, Forked, environment
from runs import STATE, assert_same_state, logged_steps
from struck import dino

from dino_cli.app import run
from dino_core.checkpoints.io import read_tensors
from dino_core.engine.state import load_state

DiskFull = Callable[[int], AbstractContextManager[None]]
STEPS = 8
RECIPE = {
    "steps": STEPS, "batch": 2, "checkpoint_every_steps": 3, "log_every_steps": 1,
    "augment": '"strong"', "dtype": '"fp32"', "device": '"cpu"',
    "probe": "false",  # whose passes would be counted
    "plots": "false", "loggers": '["csv"]',
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco_dataset(tmp_path_factory.mktemp("data"), (("train", 8), ("val", 2)))


def arguments(data: Path, model: Path, out: Path, **changes: int) -> list[str]:
    sets = [f"--set=train.{name}={value}" for name, value in {**RECIPE, **changes}.items()]
    return ["train", str(data), "--model", str(model), "--out", str(out), *sets]


@pytest.fixture(scope="module")
def whole(data: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run(arguments(data, model, out)) == 0
    return out


def assert_same_run(whole: Path, parts: Path) -> None:
    """Everything in the training state is equal, and each step is there once."""
    assert_same_state(whole, parts)
    names = read_tensors(parts / STATE)[0]
    assert any(n.startswith("ema.") for n in names)
    assert any(n.startswith("optimizer.") for n in names)
    assert logged_steps(parts) == list(range(1, STEPS + 1))
    assert not list(parts.rglob(".*.part"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "when", "saved", "changes"),
    [
        ("pass", 6, 3, {}),
        ("pass", 2, 0, {}),  # before the first checkpoint
        ("pass", 10, 3, {"accumulate": 2}),  # between the two passes of step 5
        ("pass", 6, 3, {"workers": 1}),  # equal to the run without workers
        ("rename", 3, 3, {}),  # at the last instant of writing the state of step 6
    ],
    ids=["step", "first-step", "accumulation", "workers", "writing"],
)
def test_killed_and_resumed_is_exact(
    where: str, when: int, saved: int, changes: dict[str, int],
    data: Path, model: Path, whole: Path, tmp_path: Path,
) -> None:  # fmt: skip
    parts = tmp_path / "parts"
    killed = Forked(dino, "SIGKILL", where, when, arguments(data, model, parts, **changes)).wait()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert load_state(parts / STATE).counters.step == saved
    assert run(["train", "--resume", str(parts)]) == 0
    if "accumulate" in changes:
        whole = tmp_path / "whole"
        assert run(arguments(data, model, whole, **changes)) == 0
    assert_same_run(whole, parts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_ended_run_saves_where_it_is(
    name: str, data: Path, model: Path, whole: Path, tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    ended = Forked(dino, name, "pass", 6, arguments(data, model, parts)).wait()
    assert ended.returncode == 130, ended.stderr
    assert f"dino train --resume {parts}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert load_state(parts / STATE).counters.step == 5  # not the 3 of the last checkpoint
    assert run(["train", "--resume", str(parts)]) == 0
    assert_same_run(whole, parts)


@pytest.mark.slow
def test_what_the_shell_ignores_stays_ignored(data: Path, model: Path, tmp_path: Path) -> None:
    """`nohup` ignores SIGHUP and a script's `&` SIGINT; SIGTERM always ends a run."""
    out = tmp_path / "run"
    command = [sys.executable, str(TESTS / "struck.py"), "SIGHUP,SIGINT,SIGTERM", "pass", "2"]
    shell = ["sh", "-c", 'trap "" HUP INT; exec "$@"', "sh", *command]
    done = subprocess.run(
        [*shell, *arguments(data, model, out)],
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert load_state(out / STATE).counters.step == 3  # after SIGINT in step 3, SIGTERM in step 4


def test_full_disk_keeps_the_last_good_checkpoint(
    data: Path, model: Path, whole: Path, tmp_path: Path, disk_full_after: DiskFull,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A limit on the size of files stops the write half-way, as a full disk does."""
    parts = tmp_path / "parts"
    limit = (whole / STATE).stat().st_size * 3 // 4  # Adam's moments, half of it, come later
    with disk_full_after(limit):
        code = run(arguments(data, model, parts))
    assert code == 1
    message = capsys.readouterr().err
    assert message.count("error:") == 1
    assert "the disk is full" in message and f"MiB in {parts}" in message
    assert f"dino train --resume {parts}" in message
    assert load_state(parts / STATE).counters.step == 0
    assert not list(parts.rglob(".*.part"))
    assert run(["train", "--resume", str(parts)]) == 0
    assert_same_run(whole, parts)


def test_full_disk_at_the_start_leaves_no_folder(
    data: Path, model: Path, tmp_path: Path, disk_full_after: DiskFull,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with disk_full_after(8192):
        code = run(arguments(data, model, tmp_path / "run"))
    assert code == 1
    assert "choose another --out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
