"""How the benchmarks measure: calls in turn, separate processes, the allocator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from dino_core.engine.memory import keep_freed_memory, peak_memory_mb

Key = TypeVar("Key", bound=Hashable)


def prepare(threads: int, allocator: str) -> None:
    """Set threads and allocator of this process ("default", or "kept" as with the command)."""
    if allocator == "kept" and not keep_freed_memory():
        raise SystemExit("this C library cannot keep freed memory")
    torch.set_num_threads(threads)
    torch.manual_seed(0)


def seconds(call: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(calls: Mapping[Key, Callable[[], object]], repeats: int) -> dict[Key, list[float]]:
    """Return seconds per run of each call; the calls take turns to share any other load.

    The first round warms up and does not count.
    """
    for call in calls.values():
        call()
    times: dict[Key, list[float]] = {key: [] for key in calls}
    for _ in range(repeats):
        for key, call in calls.items():
            times[key].append(seconds(call))
    return times


def peak_gb() -> float:
    """Return the peak memory of this process, in 10^9 bytes."""
    return peak_memory_mb() * 2**20 / 1e9


def run_apart(arguments: Sequence[str], threads: int) -> Any:
    """Run this script with `arguments` in a new process and return the JSON that it prints."""
    command = [sys.executable, sys.argv[0], *arguments, "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)
