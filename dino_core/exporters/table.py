"""The export formats: one row per format, read by `export()` and by the command line.

A new format is one file with a writer and a runtime, and one row here. Its packages, torch
and numpy are imported when it is used, so that `dino export --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dino_core.errors import ConfigError
from dino_core.exporters.exporter import Exporter, ExportSettings

if TYPE_CHECKING:
    from dino_core.exporters.verify import VerifiedRuntime
    from dino_core.metadata import CheckpointMeta
    from dino_core.models.dino import Dino


def _write_onnx(model: Dino, meta: CheckpointMeta, out: Path, settings: ExportSettings) -> None:
    from dino_core.exporters.onnx import write_onnx

    write_onnx(model, meta, out, settings)


def _open_onnx(path: Path) -> VerifiedRuntime:
    from dino_core.exporters.onnx import OnnxWithTokens

    return OnnxWithTokens(path)


EXPORTERS: dict[str, Exporter] = {
    "onnx": Exporter(
        suffix=".onnx",
        requires=("onnx", "onnxscript", "onnxruntime"),
        extra="onnx",
        write=_write_onnx,
        runtime=_open_onnx,
        min_opset=18,  # torch's exporter writes 18 and later
    ),
}
"""Format name to exporter; the first is the default."""

DEFAULT_FORMAT = next(iter(EXPORTERS))
DTYPES = ("fp32",)


def find_exporter(name: str) -> Exporter:
    """Return the exporter of a format.

    Raises:
        ConfigError: there is no such format; the hint lists those available.
    """
    if name not in EXPORTERS:
        raise ConfigError(
            f"export format '{name}' is not available", f"available: {', '.join(EXPORTERS)}"
        )
    return EXPORTERS[name]


def check_dtype(dtype: str) -> None:
    """Raise ConfigError for a dtype that no exporter writes."""
    if dtype not in DTYPES:
        raise ConfigError(
            f"export dtype '{dtype}' is not available", f"available: {', '.join(DTYPES)}"
        )
