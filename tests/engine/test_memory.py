from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from factories import make_coco_dataset, tiny_checkpoint
from scipy.stats import theilslopes

from dino_core.config import TrainConfig
from dino_core.data.load import load_dataset
from dino_core.engine.events import StepDone
from dino_core.engine.fit import run_events
from dino_core.engine.memory import resident_memory_mb
from dino_core.engine.request import RunRequest

STEPS, SETTLED = 250, 50  # the allocator and caches by shape are full by then


def _live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def _train(folder: Path) -> tuple[list[int], list[float], list[int]]:
    """Steps once settled, resident MiB at each, and the tensors alive at the first and last."""
    data = load_dataset(make_coco_dataset(folder / "data", [("train", 6)]), val_split=0)
    start = tiny_checkpoint(folder / "tiny.safetensors")
    recipe = TrainConfig(
        steps=STEPS, batch=2, log_every_steps=25, augment="strong", device="cpu", dtype="fp32",
        checkpoint_every_steps=STEPS,
    )  # fmt: skip
    steps, memory, tensors = [], [], []
    for event in run_events(RunRequest(recipe, data, folder / "run", model=str(start))):
        if isinstance(event, StepDone) and event.step >= SETTLED:
            steps.append(event.step)
            # Freed memory is kept for later, and tens of MiB of a leak could hide in it.
            ctypes.CDLL(None).malloc_trim(0)
            memory.append(resident_memory_mb())
            if event.step in (SETTLED, STEPS - 25):  # not the end: it saves and summarizes
                tensors.append(_live_tensors())
    return steps, memory, tensors


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_from_step_to_step(tmp_path: Path) -> None:
    """Batches of many shapes and box counts. One batch kept per step is 100 kB; the limit is 4."""
    # oneDNN keeps a kernel for each shape, so its cache must be small to be full after 50 steps.
    environment = {**os.environ, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    alone = subprocess.run(  # not the memory that other tests left behind
        [sys.executable, __file__, str(tmp_path)],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    steps, memory, tensors = json.loads(alone.stdout.splitlines()[-1])
    slope_mb = float(theilslopes(memory, steps)[0])  # of most pairs: a single jump is no growth
    assert slope_mb < 4 / 1000, f"{slope_mb * 1024:.1f} kB per step: {memory}"
    # Prefetched batches differ by a few; one tensor kept per step would be 175.
    assert tensors[1] < tensors[0] + 100, "tensors are kept from step to step"


if __name__ == "__main__":
    print(json.dumps(_train(Path(sys.argv[1]))))
