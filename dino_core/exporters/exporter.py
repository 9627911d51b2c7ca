"""What an exporter is: one row of the table in table.py; imports no torch and no numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dino_core.exporters.verify import VerifiedRuntime
    from dino_core.metadata import CheckpointMeta
    from dino_core.models.dino import Dino


@dataclass(frozen=True)
class ExportSettings:
    """How to write an artifact.

    Attributes:
        input_hw: Fixed height and width of the input.
        batch: Fixed number of images per run.
        opset: ONNX operator set; None for formats without one.
    """

    input_hw: tuple[int, int]
    batch: int = 1
    opset: int | None = None


@dataclass(frozen=True)
class Exporter:
    """One export format.

    Attributes:
        suffix: File suffix of its artifacts, e.g. ".onnx".
        requires: Packages that it imports.
        extra: The extra of this distribution that installs them.
        write: Writes a network (evaluation mode, CPU, float32) with its metadata to a file,
            atomically. Raises ExportError where that fails.
        runtime: Opens an artifact for verification. Raises ExportError where that fails.
        min_opset: Lowest and default ONNX operator set; None for formats without one.
    """

    suffix: str
    requires: tuple[str, ...]
    extra: str
    write: Callable[[Dino, CheckpointMeta, Path, ExportSettings], None]
    runtime: Callable[[Path], VerifiedRuntime]
    min_opset: int | None = None
