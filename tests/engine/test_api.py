"""`train` returns what `fit` ends with, and both are the same run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dino_core import fit, train
from dino_core.checkpoints.io import load_checkpoint
from dino_core.data.records import DatasetIndex
from dino_core.engine.events import EvaluationDone, RunFinished, RunPlanned
from dino_core.errors import ConfigError

SETTINGS = {
    "steps": 3, "batch": 2, "dtype": "fp32", "device": "cpu", "lr": 1e-3, "augment": "none",
    "plots": False, "loggers": ["csv"], "probe": False,
}  # fmt: skip
# What scripts read from summary.json: a key that goes is a breaking change.
KEYS = [
    "schema", "model", "start", "data", "train_images", "val_images", "steps", "epochs", "seconds",
    "seconds_evaluating", "skipped_steps", "rollbacks", "unreadable_images", "stopped_early",
    "best_ap", "best_step", "best", "last", "best_per_class", "metrics",
    "data_warnings",
]  # fmt: skip


def test_train_and_fit_are_the_same_run(tmp_path: Path, data: DatasetIndex, start: str) -> None:
    events = list(fit(data, start, out=tmp_path / "fit", **SETTINGS))
    summary = train(data, start, out=tmp_path / "train", **SETTINGS)
    assert isinstance(events[0], RunPlanned) and isinstance(events[-1], RunFinished)
    assert (summary.steps, summary.epochs, summary.stopped_early) == (3, 1, None)
    assert summary.out == tmp_path / "train" and summary.best.is_file() and summary.last.is_file()
    (evaluation,) = (event for event in events if isinstance(event, EvaluationDone))
    assert summary.best_ap == evaluation.metrics.ap and summary.best_step == evaluation.step == 3
    assert summary.best_per_class == evaluation.metrics.per_class
    other = events[-1].summary
    assert (other.steps, other.best_ap) == (summary.steps, summary.best_ap)
    ours, theirs = (load_checkpoint(s.last).state_dict for s in (summary, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)

    stored = json.loads((tmp_path / "train" / "summary.json").read_text())
    assert list(stored) == KEYS and stored == summary.to_dict()
    assert stored["best"] == str(summary.best) and stored["metrics"]["ap"] == summary.best_ap


def test_settings_are_checked_at_the_call(tmp_path: Path, data: DatasetIndex) -> None:
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        fit(data, out=tmp_path / "run", epoch=3)
    with pytest.raises(ConfigError, match="unknown setting 'imgsz'"):
        train(data, out=tmp_path / "run", imgsz=320)
    assert not (tmp_path / "run").exists()
