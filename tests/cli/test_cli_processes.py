"""`dino train` under torchrun and with --devices: one run, one voice, one exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import make_coco_dataset
from processes import environment
from runs import STATE, assert_same_state, logged_steps

from dino_core.checkpoints.io import read_tensors
from dino_core.engine.state import load_state
from dino_core.evaluation.evaluate import evaluate

RECIPE = {
    "steps": 6, "batch": 2, "checkpoint_every_steps": 2, "log_every_steps": 1,
    "probe": "false", "augment": '"strong"', "dtype": '"fp32"', "device": '"cpu"',
    "plots": "false", "loggers": '["csv"]',
}  # fmt: skip

# `dino` in which, at the first start, process 1 does something in its nth training pass.
STRUCK = """
import os, signal, sys
import torch
from dino_cli.app import main
from dino_core.errors import DataError

what, when = sys.argv[1], int(sys.argv[2])
first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
passes = 0

def training_pass(module, args):
    global passes
    if type(module).__name__ == "Dino" and module.training:
        passes += 1
        if passes == when and os.environ["RANK"] == "1" and first:
            if what == "error":
                raise DataError("the disk of process 1 is gone", "buy another")
            number = getattr(signal, what)
            os.kill(os.getppid() if what == "SIGTERM" else os.getpid(), number)

torch.nn.modules.module.register_module_forward_pre_hook(training_pass)
main(sys.argv[3:])
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco_dataset(tmp_path_factory.mktemp("data"), (("train", 16), ("val", 5)))


def command(data: Path, model: Path, *more: str) -> list[str]:
    sets = [f"--set=train.{name}={value}" for name, value in RECIPE.items()]
    return ["train", str(data), "--model", str(model), *sets, *more]


def started(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment(), capture_output=True,
        text=True, check=False, timeout=300,
    )  # fmt: skip


def torchrun(*arguments: str) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]


def struck(folder: Path) -> str:
    script = folder / "struck.py"
    script.write_text(STRUCK)
    return str(script)


@pytest.fixture(scope="module")
def whole(data: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that torchrun started and nothing disturbed."""
    here = tmp_path_factory.mktemp("whole")
    (here / "runs" / "train").mkdir(parents=True)  # taken: all must agree on the next name
    done = started(torchrun("-m", "dino_cli", *command(data, model)), here)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines.count("folder    runs/train-2") == lines.count("results in runs/train-2") == 1
    assert [path.name for path in (here / "runs").iterdir() if any(path.iterdir())] == ["train-2"]
    return here / "runs" / "train-2"


def assert_same_run(whole: Path, parts: Path) -> None:
    assert_same_state(whole, parts)
    assert any(name.startswith("optimizer.") for name in read_tensors(parts / STATE)[0])
    assert logged_steps(parts) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_torchrun_makes_one_run(whole: Path, data: Path) -> None:
    assert load_state(whole / STATE).counters.processes == 2
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["steps"] == 6 and summary["epochs"] == 1  # 6 steps of 4 of 16 images
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = evaluate(whole / "last.safetensors", data, batch=2, device="cpu")
    finally:
        torch.set_num_threads(threads)
    expected = json.loads(json.dumps(replace(alone, ms_per_image=None).to_dict()))
    assert {**summary["metrics"], "ms_per_image": None} == expected


@pytest.mark.slow
def test_killed_process_is_restarted_and_the_run_goes_on(
    whole: Path, data: Path, model: Path, tmp_path: Path
) -> None:
    arguments = torchrun("--max-restarts", "1", struck(tmp_path), "SIGKILL", "4")
    done = started([*arguments, *command(data, model)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed   after step 3" in done.stderr  # what process 0 had, not the 2 of the last save
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["train"]
    assert_same_run(whole, tmp_path / "runs" / "train")


@pytest.mark.slow
def test_error_in_one_process_is_told_once(data: Path, model: Path, tmp_path: Path) -> None:
    arguments = torchrun(struck(tmp_path), "error", "3")
    done = started([*arguments, *command(data, model)], tmp_path)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith(("error:", "hint:"))]
    assert told == ["error: the disk of process 1 is gone", "hint: buy another"]
    assert load_state(tmp_path / "runs/train" / STATE).counters.step == 2


@pytest.mark.slow
def test_ended_run_goes_on_with_devices(
    whole: Path, data: Path, model: Path, tmp_path: Path
) -> None:
    arguments = torchrun(struck(tmp_path), "SIGTERM", "4")
    ended = started([*arguments, *command(data, model)], tmp_path)
    assert ended.returncode != 0
    assert "interrupted; resume with: dino train --resume runs/train" in ended.stderr
    assert "error:" not in ended.stderr.replace("torch", "")
    assert load_state(tmp_path / "runs/train" / STATE).counters.step in (4, 5)
    resumed = started(
        ["-m", "dino_cli", "train", "--resume", "runs/train", "--devices", "2"], tmp_path
    )
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(whole, tmp_path / "runs" / "train")


@pytest.mark.slow
def test_devices_pass_on_code_and_signal(data: Path, model: Path, tmp_path: Path) -> None:
    wrong = started(
        ["-m", "dino_cli", *command(tmp_path / "no", model, "--devices", "2")], tmp_path
    )
    assert wrong.returncode == 3
    assert wrong.stderr.count("error:") == 1 and "Traceback" not in wrong.stderr
    assert not (tmp_path / "runs").exists()

    process = subprocess.Popen(
        [sys.executable, "-m", "dino_cli",
         *command(data, model, "--devices", "2", "--set=train.steps=100000")],
        cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    with process:
        for line in process.stderr:
            if line.startswith("step "):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert rest.count("interrupted; resume with: dino train --resume runs/train") == 1
    assert "Traceback" not in rest
    assert load_state(tmp_path / "runs/train" / STATE).counters.step > 0


def test_wrong_numbers_of_processes(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from dino_cli.app import run

    if not torch.cuda.is_available():
        assert run([*command(data, model, "--set=train.device=cuda", "--devices", "2")]) == 2
        assert "0 CUDA GPUs" in capsys.readouterr().err
    for name, value in {
        "RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert run([*command(data, model, "--devices", "2")]) == 2
    assert "torchrun started 3 processes" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert os.environ["RANK"] == "0"
