from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import TINY_INPUT, tiny_config

from dino_core.checkpoints.io import load_checkpoint
from dino_core.config import TrainConfig
from dino_core.data.records import DatasetIndex, SetApart
from dino_core.engine.events import (
    CheckpointSaved,
    EvaluationDone,
    Event,
    RolledBack,
    RunFinished,
    RunPlanned,
    StepDone,
    Warned,
)
from dino_core.engine.fit import run_events
from dino_core.engine.request import RunRequest
from dino_core.engine.step import noise_generator
from dino_core.errors import CheckpointError, ConfigError, DataError, DinoError

RECIPE = TrainConfig(
    steps=4, batch=2, log_every_steps=2, dtype="fp32", device="cpu", lr=1e-3, augment="none",
    plots=False,
)  # fmt: skip


def test_events_and_files_of_a_run(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    out = tmp_path / "run"
    events = list(run_events(RunRequest(replace(RECIPE, plots=True), data, out, model=start)))
    planned, finished = events[0], events[-1]
    assert isinstance(planned, RunPlanned)
    assert (planned.train_images, planned.val_images, planned.plan.steps) == (6, 3, 4)
    assert planned.transfer is not None and not planned.transfer.kept
    assert isinstance(finished, RunFinished)
    steps = [e for e in events if isinstance(e, StepDone)]
    assert [e.step for e in steps] == [2, 4]
    assert steps[-1].progress == 1.0 and steps[-1].epoch == 1
    assert {"total", "class", "bbox", "giou"} <= steps[0].losses.keys()
    assert events.index(next(e for e in events if isinstance(e, EvaluationDone))) > 0

    names = {p.name for p in out.iterdir()}
    assert names == {
        "best.safetensors", "last.safetensors", "state", "config.toml", "metrics.csv",
        "metrics.jsonl", "summary.json", "log.txt", "plots", "samples", "tensorboard",
    }  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 4 and summary["model"] == "dino-tiny"
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert [r["step"] for r in rows if r["loss"]] == ["2", "4"]
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    assert [x["event"] for x in lines if x["event"] != "evaluation"] == ["step", "step"]
    last = load_checkpoint(out / "last.safetensors")
    assert last.meta.classes == data.classes and last.meta.preprocess == TINY_INPUT
    assert last.meta.training["steps"] == 4
    assert last.meta.training["recipe"]["lr"] == 1e-3


def test_images_whose_names_are_not_utf8(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    renamed = [
        replace(record, path=tmp_path / os.fsdecode(b"caf\xe9%d.png" % i))
        for i, record in enumerate(data.splits["train"])
    ]
    for old, new in zip(data.splits["train"], renamed, strict=True):
        shutil.copyfile(old.path, new.path)
    splits = {"train": tuple(renamed[:4]), "val": tuple(renamed[4:])}
    index = replace(data, splits=splits, set_apart=SetApart(0.3, 0))
    out = tmp_path / "run"
    list(run_events(RunRequest(RECIPE, index, out, model=start)))
    listed = (out / "val.txt").read_bytes().splitlines()
    assert listed == [os.fsencode(record.path) for record in renamed[4:]]


def test_training_lowers_the_loss(tmp_path: Path, data: DatasetIndex) -> None:
    recipe = replace(RECIPE, steps=60, batch=6, log_every_steps=20, lr=3e-3, image_size=64)
    events = run_events(
        RunRequest(
            replace(recipe, backbone_lr_factor=1.0),
            replace(data, splits={"train": data.splits["train"]}),
            tmp_path / "run",
            model="dino-nano",
            weights="none",
            model_config=tiny_config(),
        )
    )
    losses = [e.losses["total"] for e in events if isinstance(e, StepDone)]
    assert losses[-1] < 0.8 * losses[0]


def test_without_validation_the_last_weights_are_the_best(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    only_train = replace(data, splits={"train": data.splits["train"]})
    events = list(run_events(RunRequest(RECIPE, only_train, tmp_path / "run", model=start)))
    assert not any(isinstance(e, EvaluationDone) for e in events)
    best = load_checkpoint(tmp_path / "run" / "best.safetensors").state_dict
    last = load_checkpoint(tmp_path / "run" / "last.safetensors").state_dict
    assert all(torch.equal(best[n], last[n]) for n in last)


def test_accumulation_takes_more_batches_a_step(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    recipe = replace(RECIPE, batch=1, accumulate=3, steps=4)
    steps = [
        e
        for e in run_events(RunRequest(recipe, data, tmp_path / "run", model=start))
        if isinstance(e, StepDone)
    ]
    assert steps[-1].epoch == 2  # 4 steps x 3 batches = 2 passes over 6 images


def test_one_step_moves_every_trainable_part(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    recipe = replace(RECIPE, steps=3, ema=False, warmup_steps=0)
    list(run_events(RunRequest(recipe, data, tmp_path / "run", model=start)))
    before, after = load_checkpoint(Path(start)), load_checkpoint(tmp_path / "run/last.safetensors")
    for part in ("backbone", "neck", "encoder", "query_selection", "decoder", "label_enc"):
        moved = [
            n
            for n, t in after.state_dict.items()
            if n.startswith(part) and not torch.equal(t, before.state_dict[n])
        ]
        assert moved, part


def test_frozen_backbone_stays(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    recipe = replace(RECIPE, steps=2, freeze="backbone")
    list(run_events(RunRequest(recipe, data, tmp_path / "run", model=start)))
    before, after = load_checkpoint(Path(start)), load_checkpoint(tmp_path / "run/last.safetensors")
    backbone = [n for n in before.state_dict if n.startswith("backbone.")]
    assert backbone
    assert all(torch.equal(before.state_dict[n], after.state_dict[n]) for n in backbone)


def test_bf16_runs_and_is_near_fp32(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    losses = {}
    for dtype in ("fp32", "bf16"):
        recipe = replace(RECIPE, steps=1, log_every_steps=1, dtype=dtype)
        events = run_events(RunRequest(recipe, data, tmp_path / dtype, model=start))
        losses[dtype] = next(e for e in events if isinstance(e, StepDone)).losses["total"]
    # bfloat16 has 8 bits of mantissa: relative errors of 2**-8 a product, averaged over many.
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


def test_a_run_ends_by_the_clock(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    recipe = replace(RECIPE, steps=None, minutes=0.02)
    finished = list(run_events(RunRequest(recipe, data, tmp_path / "run", model=start)))[-1]
    assert isinstance(finished, RunFinished)
    assert finished.summary.steps >= 1


def test_infinite_losses_are_left_out_and_in_the_end_stop_the_run(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    # An infinite weight makes the loss infinite without changing any code of ours.
    recipe = replace(RECIPE, steps=30, loss=replace(RECIPE.loss, weight_class=1e38))
    seen: list[Event] = []
    events = run_events(RunRequest(recipe, data, tmp_path / "run", model=start))
    with pytest.raises(DinoError, match="10 steps in a row"):
        seen.extend(events)
    returns = [event for event in seen if isinstance(event, RolledBack)]
    assert [(event.step, event.from_step) for event in returns] == [(0, 10)] * 2
    assert sum(isinstance(event, Warned) for event in seen) == 3 * 10
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_patience_stops_early(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    recipe = replace(RECIPE, steps=10**6, patience=1, lr=1e-12, log_every_steps=10**6)
    finished = list(run_events(RunRequest(recipe, data, tmp_path / "run", model=start)))[-1]
    assert isinstance(finished, RunFinished)
    assert finished.summary.stopped_early == "no better AP in 1 evaluations"


def test_the_plan_alone_writes_nothing(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    events = run_events(RunRequest(RECIPE, data, tmp_path / "run", model=start))
    assert isinstance(next(events), RunPlanned)
    events.close()
    assert not (tmp_path / "run").exists()


def test_failed_starts_leave_no_folder(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    out = tmp_path / "run"
    empty = replace(data, splits={"train": ()})
    with pytest.raises(DataError, match="no images in split"):
        list(run_events(RunRequest(RECIPE, empty, out, model=start)))
    with pytest.raises(CheckpointError, match="no such file"):
        list(run_events(RunRequest(RECIPE, data, out, model=str(tmp_path / "gone.safetensors"))))
    with pytest.raises(ConfigError, match="image_size = 8"):
        list(run_events(RunRequest(replace(RECIPE, image_size=8), data, out, model=start)))
    with pytest.raises(ConfigError, match="device"):
        list(run_events(RunRequest(replace(RECIPE, device="toaster"), data, out, model=start)))
    assert not out.exists()
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        list(run_events(RunRequest(RECIPE, data, out, model=start)))


def test_image_size_changes_the_input_and_is_stored(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    recipe = replace(RECIPE, steps=1, image_size=96)
    saved = [
        e for e in run_events(RunRequest(recipe, data, tmp_path / "run", model=start))
        if isinstance(e, CheckpointSaved)
    ]  # fmt: skip
    preprocess = load_checkpoint(saved[-1].path).meta.preprocess
    assert (preprocess.short_side, preprocess.max_side) == (96, 96)


def test_denoising_noise_depends_on_its_place_only() -> None:
    def draw(seed: int, step: int, index: int) -> list[float]:
        return torch.rand(3, generator=noise_generator(seed, step, index)).tolist()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({tuple(draw(*p)) for p in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]}) == 4
    assert draw(-1, 2, 3) == draw(-1, 2, 3) != draw(1, 2, 3)
