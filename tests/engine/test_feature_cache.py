from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import make_coco_dataset, tiny_checkpoint

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
    freeze="backbone", cached_views=2, accumulate=1, probe=False,
)  # fmt: skip  # 3 steps a pass: two passes are computed, four read


@pytest.fixture
def data(tmp_path: Path) -> DatasetIndex:
    return load_dataset(make_coco_dataset(tmp_path / "coco", [("train", 6)]), val_split=0)


@pytest.fixture
def start(tmp_path: Path) -> str:
    return str(tiny_checkpoint(tmp_path / "tiny.safetensors"))


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(run / "last.safetensors").state_dict)


def test_training_from_the_cache_equals_training_without(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    """One run keeps the maps; of the other they are deleted whenever a step is done."""
    kept, lost = tmp_path / "kept", tmp_path / "lost"
    files = 0
    for event in run_events(RunRequest(RECIPE, data, kept, model=start)):
        if isinstance(event, StepDone):
            files = max(files, len(list((kept / "state" / "features").rglob("*.safetensors"))))
    assert files == 6  # two views of three batches
    assert not list((kept / "state" / "features").rglob("*"))
    for event in run_events(RunRequest(RECIPE, data, lost, model=start)):
        if isinstance(event, StepDone):
            shutil.rmtree(lost / "state" / "features", ignore_errors=True)
    ours, theirs = _weights(kept), _weights(lost)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


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
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    list(run_events(RunRequest(RECIPE, data, whole, model=start)))
    run = run_events(RunRequest(RECIPE, data, halves, model=start))
    for event in run:
        if isinstance(event, StepDone) and event.step == 7:
            break
    run.close()
    list(run_events(RunRequest(RECIPE, data, halves, resume=True)))
    ours, theirs = _weights(whole), _weights(halves)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_damaged_files_are_computed_again(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    list(run_events(RunRequest(RECIPE, data, whole, model=start)))
    for event in run_events(RunRequest(RECIPE, data, damaged, model=start)):
        if isinstance(event, StepDone) and event.step == 6:
            for path in (damaged / "state" / "features").rglob("*.safetensors"):
                path.write_bytes(path.read_bytes()[:100])
    ours, theirs = _weights(whole), _weights(damaged)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_needs_a_frozen_backbone(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    with pytest.raises(ConfigError, match="frozen backbone"):
        next(
            iter(
                run_events(
                    RunRequest(replace(RECIPE, freeze="none"), data, tmp_path / "run", model=start)
                )
            )
        )
