"""What an exporter is: one row of the table in table.py; imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from dino_core.inference.pipeline import Runtime
from dino_core.metadata import CheckpointMeta

if TYPE_CHECKING:
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


class VerifiedRuntime(Runtime, Protocol):
    """An artifact opened for verification, which also reports the tokens that became queries."""

    @property
    def meta(self) -> CheckpointMeta:
        """The metadata inside the artifact."""

    @property
    def input_hw(self) -> tuple[int, int]:
        """Fixed height and width of its input."""

    @property
    def batch(self) -> int:
        """Fixed number of images per run."""

    def run_with_tokens(
        self, images: NDArray[np.float32], padding_mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Run one batch.

        Args:
            images: (B, 3, H, W) float32.
            padding_mask: (B, H, W) bool, True on padding.

        Returns:
            logits (B, Q, C), boxes_cxcywh (B, Q, 4) and token_indices (B, Q), the index of the
            encoder token behind each query.
        """


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
