"""The resources of this process: its CPU cores, and whether torchrun started it."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Number of CPU cores that this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def started_by_torchrun() -> bool:
    """Whether torchrun or another launcher started this process as one of several."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
