"""A resumed run equals one that was never interrupted, bit for bit on the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest
from factories import make_coco_dataset
from runs import assert_same_state, logged_steps

from dino_core.checkpoints.io import load_checkpoint
from dino_core.config import TrainConfig
from dino_core.data.load import load_dataset
from dino_core.data.records import DatasetIndex
from dino_core.engine.events import Event, RunPlanned, StepDone
from dino_core.engine.fit import run_events
from dino_core.engine.request import RunRequest
from dino_core.engine.state import load_state
from dino_core.engine.summary import RunSummary
from dino_core.errors import CheckpointError, ConfigError
from dino_core.inference.runtimes import read_metadata

RECIPE = TrainConfig(
    steps=6, batch=2, log_every_steps=1, dtype="fp32", device="cpu", lr=1e-3, augment="strong",
    plots=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco_dataset(tmp_path_factory.mktemp("coco"), (("train", 8), ("val", 2)))


@pytest.fixture(scope="module")
def data(folder: Path) -> DatasetIndex:
    return load_dataset(folder)


def train(
    config: TrainConfig, data: DatasetIndex, out: Path, start: str, resume: bool = False
) -> Generator[Event, None, RunSummary]:
    return run_events(RunRequest(config, data, out, model=start, resume=resume))


def stop_after(events: Generator[Event, None, RunSummary], step: int) -> None:
    for event in events:
        if isinstance(event, StepDone) and event.step == step:
            events.close()
            return


@pytest.mark.parametrize(("accumulate", "mosaic"), [(1, 0.0), (2, 0.0), (1, 0.5), (2, 0.5)])
def test_stop_and_resume_is_exact(
    tmp_path: Path, data: DatasetIndex, start: str, accumulate: int, mosaic: float
) -> None:
    # mosaics end before the third step: within a pass, and with accumulation between two
    recipe = replace(RECIPE, accumulate=accumulate, mosaic=mosaic, mosaic_until=0.3)
    list(train(recipe, data, tmp_path / "whole", start))
    stop_after(train(recipe, data, tmp_path / "parts", start), 3)  # in the middle of an epoch
    counters = load_state(tmp_path / "parts/state/training.safetensors").counters
    assert counters.step == 3
    assert counters.mixed_batches == ((2 if accumulate == 1 else 0) if mosaic else None)
    events = train(recipe, data, tmp_path / "parts", start, resume=True)
    planned = next(events)
    assert isinstance(planned, RunPlanned) and planned.resumed_step == 3
    steps = [e.step for e in events if isinstance(e, StepDone)]
    assert steps == [4, 5, 6]
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    resumed = read_metadata(tmp_path / "parts" / "last.safetensors").provenance
    whole = read_metadata(tmp_path / "whole" / "last.safetensors").provenance
    assert (
        resumed == {**whole, "run": "parts"} and resumed["history"][0]["file"] == Path(start).name
    )
    assert logged_steps(tmp_path / "parts") == [1, 2, 3, 4, 5, 6]


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from dino_core.data.load import load_dataset
from dino_core.engine.events import StepDone
from dino_core.engine.fit import run_events
from dino_core.engine.request import RunRequest
import test_resume
from dataclasses import replace
recipe = replace(test_resume.RECIPE, checkpoint_every_steps=2)
request = RunRequest(recipe, load_dataset({data!r}), Path({out!r}), model={start!r})
for event in run_events(request):
    if isinstance(event, StepDone) and event.step == 5:
        print("five", flush=True)
        import time; time.sleep(600)
"""


def test_kill_and_resume_is_exact(
    tmp_path: Path, folder: Path, data: DatasetIndex, start: str
) -> None:
    here = Path(__file__).parent
    out = tmp_path / "killed"
    paths = os.pathsep.join([str(here.parent), os.environ["PYTHONPATH"]])
    process = subprocess.Popen(
        [sys.executable, "-c",
         KILLED.format(tests=str(here), data=str(folder), out=str(out), start=start)],
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == b"five\n"
        process.send_signal(signal.SIGKILL)
    assert load_state(out / "state/training.safetensors").counters.step == 4
    recipe = replace(RECIPE, checkpoint_every_steps=2)
    list(train(recipe, data, out, start, resume=True))
    list(train(recipe, data, tmp_path / "whole", start))
    assert_same_state(tmp_path / "whole", out)
    assert logged_steps(out) == [1, 2, 3, 4, 5, 6]


def test_closing_leaves_a_checkpoint_that_loads(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    stop_after(train(RECIPE, data, tmp_path / "run", start), 2)
    assert load_checkpoint(tmp_path / "run/last.safetensors").meta.training["steps"] == 2


def test_resume_of_something_else(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    with pytest.raises(ConfigError, match="no training run to resume"):
        next(train(RECIPE, data, tmp_path, start, resume=True))
    out = tmp_path / "run"
    stop_after(train(RECIPE, data, out, start), 2)
    other = replace(data, classes=replace(data.classes, names=("a", "b")))
    with pytest.raises(ConfigError, match="other classes"):
        next(train(RECIPE, other, out, start, resume=True))
    state = out / "state/training.safetensors"
    content = state.read_bytes()
    state.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        next(train(RECIPE, data, out, start, resume=True))
    state.write_bytes((out / "last.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="not a training state"):
        next(train(RECIPE, data, out, start, resume=True))


def test_time_of_earlier_sessions_counts(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    stop_after(train(RECIPE, data, tmp_path / "run", start), 3)
    before = load_state(tmp_path / "run/state/training.safetensors").counters.elapsed_s
    began = time.monotonic()
    list(train(RECIPE, data, tmp_path / "run", start, resume=True))
    spent = time.monotonic() - began
    after = load_state(tmp_path / "run/state/training.safetensors").counters.elapsed_s
    assert before < after <= before + spent
