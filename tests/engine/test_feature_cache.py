from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import make_coco_dataset

from dino_core.checkpoints.io import load_checkpoint
from dino_core.config import TrainConfig
from dino_core.data.load import load_dataset
from dino_core.data.records import DatasetIndex
from dino_core.engine.events import RunFinished, StepDone, Warned
from dino_core.engine.fit import run_events
from dino_core.engine.request import RunRequest
from dino_core.errors import ConfigError

RECIPE = TrainConfig(
    steps=18, batch=2, log_every_steps=1, dtype="fp32", device="cpu", lr=1e-3, augment="strong",
    freeze="backbone", cached_views=2, accumulate=1, probe=False, plots=False,
)  # fmt: skip  # 3 steps a pass: two passes are computed, four read


def _dataset(folder: Path) -> DatasetIndex:
    return load_dataset(make_coco_dataset(folder / "coco", [("train", 6)]), val_split=0)


@pytest.fixture
def data(tmp_path: Path) -> DatasetIndex:
    return _dataset(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, start: str) -> Path:
    """A run that keeps the maps and that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    run, files = folder / "run", 0
    for event in run_events(RunRequest(RECIPE, _dataset(folder), run, model=start)):
        if isinstance(event, StepDone):
            files = max(files, len(list((run / "state" / "features").rglob("*.safetensors"))))
    assert files == 6  # two views of three batches
    assert not list((run / "state" / "features").rglob("*"))
    return run


def _assert_same_weights(a: Path, b: Path) -> None:
    ours, theirs = (load_checkpoint(run / "last.safetensors").state_dict for run in (a, b))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_training_from_the_cache_equals_training_without(
    whole: Path, tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    """The other run loses its maps whenever a step is done."""
    lost = tmp_path / "lost"
    for event in run_events(RunRequest(RECIPE, data, lost, model=start)):
        if isinstance(event, StepDone):
            shutil.rmtree(lost / "state" / "features", ignore_errors=True)
    _assert_same_weights(whole, lost)


def test_after_the_first_passes_no_image_is_read(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    for event in run_events(RunRequest(RECIPE, data, tmp_path / "run", model=start)):
        assert not isinstance(event, Warned)
        if isinstance(event, StepDone) and event.step == 6:
            for record in data.splits["train"]:
                record.path.unlink()
    assert isinstance(event, RunFinished)


def test_a_resumed_run_goes_on_with_what_was_kept(
    whole: Path, tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    halves = tmp_path / "halves"
    run = run_events(RunRequest(RECIPE, data, halves, model=start))
    for event in run:
        if isinstance(event, StepDone) and event.step == 7:
            break
    run.close()
    list(run_events(RunRequest(RECIPE, data, halves, resume=True)))
    _assert_same_weights(whole, halves)


def test_damaged_files_are_computed_again(
    whole: Path, tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    damaged = tmp_path / "damaged"
    for event in run_events(RunRequest(RECIPE, data, damaged, model=start)):
        if isinstance(event, StepDone) and event.step == 6:
            for path in (damaged / "state" / "features").rglob("*.safetensors"):
                path.write_bytes(path.read_bytes()[:100])
    _assert_same_weights(whole, damaged)


def test_needs_a_frozen_backbone(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    with pytest.raises(ConfigError, match="frozen backbone"):
        next(
            iter(
                run_events(
                    RunRequest(replace(RECIPE, freeze="none"), data, tmp_path / "run", model=start)
                )
            )
        )
