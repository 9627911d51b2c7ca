"""What this process was given: cores, and its place among others that torchrun started."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores that this process may run on, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def started_by_torchrun() -> bool:
    """Whether the environment tells this process which one of several it is."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
