"""The switch that forbids the network."""

from __future__ import annotations

import os


def is_offline() -> bool:
    """Whether the environment variable DINO_OFFLINE forbids the network."""
    return os.environ.get("DINO_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")
