"""The error for a folder in the place of a model file; imports no torch."""

from __future__ import annotations

from pathlib import Path

from dino_core.errors import CheckpointError


def folder_error(path: Path) -> CheckpointError:
    """What to raise where `path` is a folder and a model file was expected."""
    return CheckpointError(f"{path}: a folder, not a model file", "e.g. best.safetensors in it")
