"""Runs that are killed, ended or run out of disk go on and end as if nothing had happened."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from factories import make_coco_dataset, tiny_checkpoint

from dino_cli.app import run
from dino_core.checkpoints.io import read_tensors
from dino_core.engine.state import load_state

STATE = "state/training.safetensors"
STEPS = 8
RECIPE = {
    "steps": STEPS, "batch": 2, "checkpoint_every_steps": 3, "log_every_steps": 1,
    "augment": '"strong"', "dtype": '"fp32"', "device": '"cpu"',
    "probe": "false",  # whose passes would be counted
}  # fmt: skip

# `dino` that sends itself a signal in its nth training pass ("pass"), or when the nth training
# state is written but not yet in its place ("rename").
STRUCK = """
import os, signal, sys
import torch
from dino_cli.app import main

name, where, when = sys.argv[1], sys.argv[2], int(sys.argv[3])
seen = 0

def count(event):
    global seen
    if event == where:
        seen += 1
        if seen == when:
            os.kill(os.getpid(), getattr(signal, name))

def training_pass(module, args):
    if type(module).__name__ == "Dino" and module.training:
        count("pass")

def audit(event, args):
    if event == "os.rename" and str(args[1]).endswith("training.safetensors"):
        count("rename")

torch.nn.modules.module.register_module_forward_pre_hook(training_pass)
sys.addaudithook(audit)
main(sys.argv[4:])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco_dataset(tmp_path_factory.mktemp("data"), (("train", 8), ("val", 2)))


def arguments(data: Path, model: Path, out: Path, **changes: int) -> list[str]:
    sets = [f"--set=train.{name}={value}" for name, value in {**RECIPE, **changes}.items()]
    return ["train", str(data), "--model", str(model), "--out", str(out), *sets]


def struck(
    name: str, where: str, when: int, command: list[str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", STRUCK, name, where, str(when), *command],
        capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip


def assert_same_run(whole: Path, parts: Path) -> None:
    """Weights, average, moments and random numbers are equal, and each step is there once."""
    for name in ("last.safetensors", STATE):
        ours, theirs = read_tensors(whole / name)[0], read_tensors(parts / name)[0]
        assert ours.keys() == theirs.keys()
        different = [n for n in ours if not torch.equal(ours[n], theirs[n])]
        assert not different, (name, different[:5])
    assert any(n.startswith("ema.") for n in theirs)
    assert any(n.startswith("optimizer.") for n in theirs)
    rows = [json.loads(x) for x in (parts / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["event"] == "step"] == list(range(1, STEPS + 1))
    assert not list(parts.rglob(".*.part"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "when", "saved", "changes"),
    [
        ("pass", 6, 3, {}),
        ("pass", 2, 0, {}),  # before the first checkpoint
        ("pass", 10, 3, {"accumulate": 2}),  # between the two passes of step 5
        ("pass", 6, 3, {"workers": 1}),
        ("rename", 3, 3, {}),  # at the last instant of writing the state of step 6
    ],
    ids=["step", "first-step", "accumulation", "workers", "writing"],
)
def test_killed_and_resumed_is_exact(
    where: str, when: int, saved: int, changes: dict[str, int],
    data: Path, model: Path, tmp_path: Path,
) -> None:  # fmt: skip
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    killed = struck("SIGKILL", where, when, arguments(data, model, parts, **changes))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert load_state(parts / STATE).counters.step == saved
    assert run(["train", "--resume", str(parts)]) == 0
    assert run(arguments(data, model, whole, **changes)) == 0
    assert_same_run(whole, parts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_ended_run_saves_where_it_is(name: str, data: Path, model: Path, tmp_path: Path) -> None:
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    ended = struck(name, "pass", 6, arguments(data, model, parts))
    assert ended.returncode == 130, ended.stderr
    assert f"dino train --resume {parts}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert load_state(parts / STATE).counters.step == 5  # not the 3 of the last checkpoint
    assert run(["train", "--resume", str(parts)]) == 0
    assert run(arguments(data, model, whole)) == 0
    assert_same_run(whole, parts)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("HUP", 0), ("INT", 0), ("TERM", 130)])
def test_what_the_shell_ignores_stays_ignored(
    name: str, code: int, data: Path, model: Path, tmp_path: Path
) -> None:
    """`nohup` ignores SIGHUP and a script's `&` SIGINT; SIGTERM always ends a run."""
    command = [
        sys.executable, "-c", STRUCK, f"SIG{name}", "pass", "2",
        *arguments(data, model, tmp_path / "run"),
    ]  # fmt: skip
    shell = ["sh", "-c", 'trap "" HUP INT; exec "$@"', "sh", *command]
    done = subprocess.run(shell, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == code, done.stderr


def test_full_disk_keeps_the_last_good_checkpoint(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stops the write half-way, as a full disk does."""
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    assert run(arguments(data, model, whole)) == 0
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = (whole / STATE).stat().st_size * 3 // 4  # Adam's moments, half of it, come later
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        code = run(arguments(data, model, parts))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
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
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        code = run(arguments(data, model, tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1
    assert "choose another --out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
