"""How the benchmarks measure: calls in turn, processes of their own, the allocator."""

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
    """Set this process's threads and allocator ("kept": as the dino command does; "default")."""
    if allocator == "kept" and not keep_freed_memory():
        raise SystemExit("this C library cannot be told to keep freed memory")
    torch.set_num_threads(threads)
    torch.manual_seed(0)


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(calls: Mapping[Key, Callable[[], object]], repeats: int) -> dict[Key, list[float]]:
    """Seconds of each call's runs; the calls take turns, so that other load meets all of them.

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
    """The most memory this process has held, in 10^9 bytes."""
    return peak_memory_mb() * 2**20 / 1e9


def run_apart(arguments: Sequence[str], threads: int) -> Any:
    """What this script, called with `arguments` in a new process, prints as JSON."""
    command = [sys.executable, sys.argv[0], *arguments, "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)
