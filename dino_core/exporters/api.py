"""`export()`: from a model's name or file to a verified artifact."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dino_core.checkpoints import zoo
from dino_core.checkpoints.io import build_model
from dino_core.config import MIN_IMAGE_SIZE, PreprocessConfig
from dino_core.errors import ConfigError, ExportError
from dino_core.exporters.exporter import Exporter, ExportSettings
from dino_core.exporters.table import DEFAULT_FORMAT, check_dtype, find_exporter
from dino_core.exporters.verify import ParityReport, verify_artifact


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: The artifact.
        format: Its format, a key of `EXPORTERS`.
        input_hw: Height and width of its input.
        batch: Images per run.
        opset: ONNX operator set; None for formats without one.
        bytes: Size of the file.
        parity: How closely it reproduces torch on the given images; None without images.
    """

    path: Path
    format: str
    input_hw: tuple[int, int]
    batch: int
    opset: int | None
    bytes: int
    parity: ParityReport | None


def export(
    model: str | Path,
    out: str | Path,
    format: str = DEFAULT_FORMAT,
    *,
    image_size: tuple[int, int] | None = None,
    batch: int = 1,
    opset: int | None = None,
    dtype: str = "fp32",
    verify: Sequence[str | Path] = (),
) -> ExportReport:
    """Write a model in a format that runs without torch.

    Args:
        model: A model's name or file.
        out: The file to write.
        format: A key of `dino_core.exporters.table.EXPORTERS`, e.g. "onnx".
        image_size: Fixed (height, width) of the input in pixels; the model's own where None.
        batch: Fixed number of images per run.
        opset: ONNX operator set; the exporter's default where None.
        dtype: "fp32".
        verify: Image files on which the artifact is compared with torch. The file is kept whatever
            the result, which is `report.parity.ok`.

    Raises:
        ConfigError: the format is unknown, or a setting is not possible.
        CheckpointError: the model cannot be read.
        DataError: an image of `verify` cannot be read.
        ExportError: a package is missing, or the model cannot be written or run.
    """
    out = Path(out)
    exporter = find_exporter(format)
    check_dtype(dtype)
    opset = exporter.min_opset if opset is None else opset
    _check_settings(exporter, format, batch, opset)
    _check_out(exporter, out)
    checkpoint = zoo.load(model)
    input_hw = image_size or default_input_hw(checkpoint.meta.preprocess)
    if min(input_hw) < MIN_IMAGE_SIZE:
        raise ConfigError(
            f"image size {input_hw[0]}x{input_hw[1]}: each side must be at least {MIN_IMAGE_SIZE}"
        )
    network = build_model(checkpoint)
    # The artifact resizes and pads images to its own fixed size, whatever the model's is.
    preprocess = replace(
        checkpoint.meta.preprocess,
        short_side=min(input_hw),
        max_side=max(input_hw),
        canvas=input_hw,
    )
    meta = replace(checkpoint.meta, preprocess=preprocess)
    exporter.write(network, meta, out, ExportSettings(input_hw, batch, opset))
    parity = verify_artifact(exporter.runtime(out), network, verify) if verify else None
    return ExportReport(out, format, input_hw, batch, opset, out.stat().st_size, parity)


def default_input_hw(config: PreprocessConfig) -> tuple[int, int]:
    """The input size of an export for which none is given: the model's own, landscape."""
    return config.canvas or (config.short_side, config.max_side)


def _check_settings(exporter: Exporter, format: str, batch: int, opset: int | None) -> None:
    missing = [name for name in exporter.requires if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"export to {format} needs {', '.join(missing)}",
            f'pip install "dino-detector[{exporter.extra}]"',
        )
    if batch < 1:
        raise ConfigError(f"batch {batch}: must be at least 1")
    if opset is not None and exporter.min_opset is None:
        raise ConfigError(f"opset {opset}: the format {format} has no operator sets")
    if opset is not None and exporter.min_opset is not None and opset < exporter.min_opset:
        raise ConfigError(f"opset {opset}: must be at least {exporter.min_opset}")


def _check_out(exporter: Exporter, out: Path) -> None:
    if out.suffix.lower() != exporter.suffix:
        raise ConfigError(
            f"{out}: the file's name must end in {exporter.suffix}",
            f"e.g. {out.with_suffix(exporter.suffix).name}",
        )
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder, expected a file to write")
