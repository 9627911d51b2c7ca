"""`export()`: from a model's name or file to a checked artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_core.checkpoints import zoo
from dino_core.checkpoints.io import build_model
from dino_core.errors import ConfigError
from dino_core.exporters.onnx import DEFAULT_OPSET, check_export, default_input_hw, export_onnx
from dino_core.exporters.verify import ParityReport, verify_onnx

FORMATS = ("onnx",)
DTYPES = ("fp32",)


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: The artifact.
        format: "onnx".
        input_hw: Height and width of its input.
        batch: Images it takes at once.
        opset: ONNX operator set.
        bytes: Size of the file.
        parity: How well it repeats torch on the images given; None where none were.
    """

    path: Path
    format: str
    input_hw: tuple[int, int]
    batch: int
    opset: int
    bytes: int
    parity: ParityReport | None


def export(
    model: str | Path,
    out: str | Path,
    format: str = "onnx",
    *,
    image_size: tuple[int, int] | None = None,
    batch: int = 1,
    opset: int = DEFAULT_OPSET,
    dtype: str = "fp32",
    verify: Sequence[str | Path] = (),
) -> ExportReport:
    """Write a model in a form that runs without torch.

    Args:
        model: A model's name or file.
        out: The file to write.
        format: "onnx".
        image_size: Fixed (height, width) of the input; the model's own where None.
        batch: Images a run takes, exactly.
        opset: ONNX operator set.
        dtype: "fp32".
        verify: Image files on which the artifact is compared with torch. The file is kept whatever
            comes out; `report.parity.ok` tells.

    Raises:
        ConfigError: an unknown format or a setting that cannot be.
        CheckpointError: the model cannot be read.
        DataError: an image of `verify` cannot be read.
        ExportError: a package is missing, or the model cannot be written or run.
    """
    out = Path(out)
    _check_choice("format", format, FORMATS)
    _check_choice("dtype", dtype, DTYPES)
    checkpoint = zoo.load(model)
    input_hw = image_size or default_input_hw(checkpoint.meta.preprocess)
    check_export(out, input_hw, batch, opset)
    network = build_model(checkpoint)
    export_onnx(network, checkpoint.meta, out, input_hw=input_hw, batch=batch, opset=opset)
    parity = verify_onnx(out, network, verify) if verify else None
    return ExportReport(out, format, input_hw, batch, opset, out.stat().st_size, parity)


def _check_choice(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(
            f"export {what} '{value}' is not available", f"available: {', '.join(known)}"
        )
