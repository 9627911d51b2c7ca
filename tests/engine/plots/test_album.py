"""Pictures of real tiny runs: all there, after a resume too, and training is the same without."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dino_core.checkpoints.io import read_tensors
from dino_core.config import TrainConfig
from dino_core.data.records import DatasetIndex
from dino_core.detections import ClassMap
from dino_core.engine.events import Event, PicturesDrawn, RunFinished, StepDone, Warned
from dino_core.engine.fit import run_events
from dino_core.engine.plots.album import Album
from dino_core.engine.plots.curves import draw_curves
from dino_core.engine.request import RunRequest
from dino_core.engine.run_folder import RunFolder

RECIPE = TrainConfig(
    steps=5, batch=2, log_every_steps=1, dtype="fp32", device="cpu", augment="default",
    loggers=("csv",),
)  # fmt: skip
PLOTS = ["batches.png", "confusion.png", "curves.png", "labels.png", "pr.png"]


def test_every_picture_of_a_run_is_there_and_can_be_opened(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    out = tmp_path / "run"
    events = list(run_events(RunRequest(RECIPE, data, out, model=start)))
    drawn = {path for e in events if isinstance(e, PicturesDrawn) for path in e.paths}
    assert sorted(path.name for path in (out / "plots").iterdir()) == PLOTS
    samples = sorted((out / "samples").iterdir())
    assert [path.name for path in samples] == ["0001.jpg", "0002.jpg", "0003.jpg"]
    assert drawn == {*(out / "plots").iterdir(), *samples}
    for path in drawn:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 100
    first_step = next(i for i, e in enumerate(events) if isinstance(e, StepDone))
    assert isinstance(events[1], PicturesDrawn) and first_step > 1
    assert events[1].paths == (out / "plots" / "labels.png",)
    assert isinstance(events[-1], RunFinished)
    assert not any(isinstance(e, Warned) for e in events)


def test_training_is_bit_for_bit_the_same_with_and_without_pictures(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    noisy = replace(RECIPE, augment="strong")
    for name, plots in (("with", True), ("without", False)):
        list(
            run_events(RunRequest(replace(noisy, plots=plots), data, tmp_path / name, model=start))
        )
    assert not (tmp_path / "without" / "plots").exists()
    assert not (tmp_path / "without" / "samples").exists()
    state = "state/training.safetensors"  # weights, average, moments
    ours, theirs = (read_tensors(tmp_path / n / state)[0] for n in ("with", "without"))
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if not torch.equal(ours[n], theirs[n])] == []


def test_a_resumed_run_draws_the_whole_curve(
    tmp_path: Path, data: DatasetIndex, start: str
) -> None:
    out = tmp_path / "run"
    events = run_events(RunRequest(RECIPE, data, out, model=start))
    for event in events:
        if isinstance(event, StepDone) and event.step == 3:
            break
    events.close()
    labels = out / "plots" / "labels.png"
    written = labels.stat().st_mtime_ns
    (out / "plots" / ".pr.png.999.part").write_text("half")
    list(run_events(RunRequest(RECIPE, data, out, model=start, resume=True)))
    assert sorted(path.name for path in (out / "plots").iterdir()) == PLOTS
    assert labels.stat().st_mtime_ns == written
    rows = RunFolder(out).rows()
    assert [row["step"] for row in rows if row["event"] == "step"] == [1, 2, 3, 4, 5]
    assert (out / "plots" / "curves.png").read_bytes() == draw_curves(rows)


def test_a_failure_to_draw_is_one_warning(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    out = tmp_path / "run"
    events: list[Event] = []
    for event in run_events(RunRequest(RECIPE, data, out, model=start)):
        if isinstance(event, PicturesDrawn) and not any(e is event for e in events):
            shutil.rmtree(out / "plots", ignore_errors=True)
            (out / "plots").unlink(missing_ok=True)
            (out / "plots").write_text("a file where the folder should be")
        events.append(event)
    warnings = [e for e in events if isinstance(e, Warned)]
    assert len(warnings) == 1
    assert "plots" in warnings[0].message and "training continues" in warnings[0].message
    assert isinstance(events[-1], RunFinished) and events[-1].summary.steps == 5


def test_no_random_number_is_drawn(tmp_path: Path, data: DatasetIndex) -> None:
    from factories import TINY_INPUT

    album = Album(RunFolder(tmp_path), data, TINY_INPUT, wanted=True)
    before = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    (drawn,) = album.labels()
    assert isinstance(drawn, PicturesDrawn)
    assert random.getstate() == before[0]
    np.testing.assert_equal(np.random.get_state(legacy=False), before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


def test_classes_with_odd_names_and_without_boxes(tmp_path: Path, data: DatasetIndex) -> None:
    """Dollar signs are no formula, letters that no font has are no error."""
    from factories import TINY_INPUT

    names = ("$5 bill$", "\u732b\u5b50", *(f"class number {n} with a long name" for n in range(60)))
    odd = replace(data, classes=ClassMap.from_names(names))
    (drawn,) = Album(RunFolder(tmp_path), odd, TINY_INPUT, wanted=True).labels()
    assert isinstance(drawn, PicturesDrawn)
