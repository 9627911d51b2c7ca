"""What trained runs leave in their folders, compared."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dino_core.checkpoints.io import read_tensors

STATE = "state/training.safetensors"


def assert_same_state(a: Path, b: Path) -> None:
    """Weights, their average, the optimizer's moments and the random numbers are equal."""
    for name in ("last.safetensors", STATE):
        ours, theirs = read_tensors(a / name)[0], read_tensors(b / name)[0]
        assert ours.keys() == theirs.keys()
        different = [n for n in ours if not torch.equal(ours[n], theirs[n])]
        assert not different, (name, different[:5])


def logged_steps(run: Path) -> list[int]:
    """The steps in the metrics of a run, in the order in which they were written."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if row["event"] == "step"]
