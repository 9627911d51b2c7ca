"""A DINO as one ONNX file of fixed input size, with everything that prediction needs inside.

Inputs are `images` (B, 3, H, W) float32, normalised, zero-padded at the bottom and right, and
`padding_mask` (B, H, W) bool, True on padding; outputs are `logits` (B, Q, C) and `boxes`
(B, Q, 4) cxcywh relative to the image without padding. Deformable attention is traced through its
reference form (GridSample, ONNX opset 16), the model metadata is JSON under the key "dino".
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dino_core.config import PreprocessConfig
from dino_core.errors import ConfigError, ExportError
from dino_core.files import atomic_file
from dino_core.metadata import METADATA_KEY, CheckpointMeta, to_json
from dino_core.ops.backend import use_backend

if TYPE_CHECKING:
    from dino_core.models.dino import Dino

INPUT_NAMES = ("images", "padding_mask")
OUTPUT_NAMES = ("logits", "boxes")

DEFAULT_OPSET = 18
MIN_OPSET = 18  # torch's exporter writes 18 and later
MIN_SIDE = 32  # the coarsest map of a backbone has stride 32

REQUIRED = ("onnx", "onnxscript", "onnxruntime")


class _Outputs(nn.Module):
    """The model with a plain tuple for its result, as ONNX has outputs only."""

    def __init__(self, model: Dino) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(images, padding_mask)
        return output.logits, output.boxes_cxcywh


def default_input_hw(config: PreprocessConfig) -> tuple[int, int]:
    """The fixed size of an export that names none: the model's own, landscape."""
    return config.canvas or (config.short_side, config.max_side)


def check_export(out: Path, input_hw: tuple[int, int], batch: int, opset: int) -> None:
    """Everything that can be refused before the slow part.

    Raises:
        ExportError: a package is missing.
        ConfigError: a size, batch, opset or file name that cannot be.
    """
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"ONNX export needs {', '.join(missing)}", 'pip install "dino-detector[onnx]"'
        )
    if min(input_hw) < MIN_SIDE:
        raise ConfigError(f"image size {input_hw[0]}x{input_hw[1]}: a side is below {MIN_SIDE}")
    if batch < 1:
        raise ConfigError(f"batch {batch}: must be at least 1")
    if opset < MIN_OPSET:
        raise ConfigError(f"opset {opset}: must be at least {MIN_OPSET}")
    if out.suffix.lower() != ".onnx":
        raise ConfigError(f"{out}: an ONNX file's name ends in .onnx", f"{out.stem}.onnx")
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder")


def export_onnx(
    model: Dino,
    meta: CheckpointMeta,
    out: Path,
    *,
    input_hw: tuple[int, int] | None = None,
    batch: int = 1,
    opset: int = DEFAULT_OPSET,
) -> CheckpointMeta:
    """Write the model as an ONNX file, atomically.

    Args:
        model: In evaluation mode, on the CPU, float32.
        meta: What the file will say about itself.
        out: The file, ending in `.onnx`.
        input_hw: Height and width of the input; the model's own where None.
        batch: Images a run takes, exactly.
        opset: ONNX operator set.

    Returns:
        The metadata inside the file, whose preprocessing fits images into `input_hw`.

    Raises:
        ConfigError: a setting that cannot be.
        ExportError: a package is missing, or torch cannot trace the model.
    """
    height, width = input_hw = input_hw or default_input_hw(meta.preprocess)
    check_export(out, input_hw, batch, opset)
    meta = replace(
        meta,
        preprocess=replace(
            meta.preprocess, short_side=min(input_hw), max_side=max(input_hw), canvas=input_hw
        ),
    )
    example = (
        torch.zeros(batch, 3, height, width),
        torch.zeros(batch, height, width, dtype=torch.bool),
    )
    proto = _trace(_Outputs(model).eval(), example, opset)
    proto.producer_name, proto.producer_version = "dino-detector", meta.version
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, to_json(meta)
    with atomic_file(out) as file:
        file.write(proto.SerializeToString())
    return meta


def _trace(model: nn.Module, example: tuple[Tensor, Tensor], opset: int) -> Any:
    """The model as an ONNX ModelProto."""
    try:
        with use_backend("reference"), _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                example,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=INPUT_NAMES,
                output_names=OUTPUT_NAMES,
            )
    except Exception as error:  # torch raises many kinds here, all of them meaning this
        first_line = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"torch {torch.__version__} could not write this model as ONNX opset {opset}: "
            f"{type(error).__name__}: {first_line}"
        ) from error
    assert program is not None
    proto = program.model_proto
    found = max(entry.version for entry in proto.opset_import if entry.domain == "")
    if found != opset:
        raise ExportError(f"torch wrote ONNX opset {found} where {opset} was asked for")
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks on its own internals, off."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
