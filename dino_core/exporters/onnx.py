"""A DINO as one ONNX file of fixed input size, with everything that prediction needs inside.

Inputs are `images` (B, 3, H, W) float32, normalized, zero-padded at the bottom and right, and
`padding_mask` (B, H, W) bool, True on padding. Outputs are `logits` (B, Q, C) and `boxes`
(B, Q, 4), cxcywh relative to the image without padding. Deformable attention is traced through its
reference implementation (GridSample, ONNX opset 16). The model's metadata is JSON under the key
"dino".
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dino_core.errors import CheckpointError, ExportError
from dino_core.exporters.exporter import ExportSettings
from dino_core.files import atomic_file
from dino_core.inference.onnx_runtime import BOXES, IMAGES, LOGITS, PADDING_MASK, OnnxRuntime
from dino_core.inference.pipeline import Arrays
from dino_core.metadata import METADATA_KEY, CheckpointMeta, to_json
from dino_core.ops.backend import use_backend

if TYPE_CHECKING:
    from dino_core.models.dino import Dino

_TOKENS = "tokens"


class _Outputs(nn.Module):
    """The model with a plain tuple as its result, since ONNX has named outputs only."""

    def __init__(self, model: Dino) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(images, padding_mask)
        return output.logits, output.boxes_cxcywh


def write_onnx(model: Dino, meta: CheckpointMeta, out: Path, settings: ExportSettings) -> None:
    """Write the model as an ONNX file, atomically.

    Args:
        model: In evaluation mode, on the CPU, float32.
        meta: The metadata to put into the file; its preprocessing fits images into the input.
        out: The file.
        settings: Input size, batch and operator set.

    Raises:
        ExportError: torch cannot trace the model, or cannot write the operator set.
    """
    (height, width), batch = settings.input_hw, settings.batch
    # The size is fixed by these tensors: the sizes of the levels are constants of the graph.
    example = (
        torch.zeros(batch, 3, height, width),
        torch.zeros(batch, height, width, dtype=torch.bool),
    )
    proto = _trace(_Outputs(model).eval(), example, settings.opset)
    proto.producer_name, proto.producer_version = "dino-detector", meta.version
    entry = proto.metadata_props.add()
    # With its metadata inside, the file alone is enough for prediction.
    entry.key, entry.value = METADATA_KEY, to_json(meta)
    with atomic_file(out) as file:
        file.write(proto.SerializeToString())


def _trace(model: nn.Module, example: tuple[Tensor, Tensor], opset: int | None) -> Any:
    """Return the model as an ONNX ModelProto."""
    try:
        # The compiled operator has no counterpart in ONNX, while grid_sample has one.
        with use_backend("reference"), _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                example,
                # The exporter that is based on torch.export, which replaces the one of TorchScript.
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=(IMAGES, PADDING_MASK),
                output_names=(LOGITS, BOXES),
            )
    except Exception as error:  # torch raises exceptions of many types here
        first_line = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"torch {torch.__version__} could not write this model as ONNX opset {opset}: "
            f"{type(error).__name__}: {first_line}"
        ) from error
    assert program is not None
    proto = program.model_proto
    # torch may write another opset than asked for where its conversion fails, and then only warns.
    found = max(entry.version for entry in proto.opset_import if entry.domain == "")
    if found != opset:
        raise ExportError(f"torch wrote ONNX opset {found} instead of {opset}")
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages about its own internals."""
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


class OnnxWithTokens:
    """An ONNX file that also returns the indices of the encoder tokens chosen as queries.

    The tokens are inside the graph, but not among the outputs of the file: users do not need them,
    and verification does.

    Attributes:
        path: The file.
        meta: The metadata inside it.
        input_hw: Fixed height and width of its input.
        batch: Fixed number of images per run.
    """

    def __init__(self, path: Path) -> None:
        """Open a file that `write_onnx` wrote.

        Raises:
            ExportError: the file cannot be read, is of another kind, or cannot be run.
        """
        graph = _with_tokens(path)
        try:
            self._runtime = OnnxRuntime(path, "cpu", graph=graph)
        except CheckpointError as error:
            raise ExportError(error.message, error.hint) from error
        if self._runtime.input_hw is None or self._runtime.input_batch is None:
            raise ExportError(f"{path}: its input has no fixed size and batch", "export it again")
        self.path: Path = path
        self.meta: CheckpointMeta = self._runtime.meta
        self.input_hw: tuple[int, int] = self._runtime.input_hw
        self.batch: int = self._runtime.input_batch

    def run(self, images: NDArray[np.float32], padding_mask: NDArray[np.bool_]) -> Arrays:
        """Run the network as prediction does; see `OnnxRuntime.run`."""
        return self._runtime.run(images, padding_mask)

    def run_with_tokens(
        self, images: NDArray[np.float32], padding_mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Run one batch; see `VerifiedRuntime`."""
        logits, boxes, tokens = self._runtime.run_for(
            [LOGITS, BOXES, _TOKENS], images, padding_mask
        )
        return logits, boxes, tokens


def _with_tokens(path: Path) -> bytes:
    """Return the model of an ONNX file with the token indices as a third output, serialized."""
    import onnx

    try:
        proto = onnx.load(str(path))
    except Exception as error:  # protobuf's exceptions among them, which have no type stubs
        raise ExportError(f"{path}: cannot be read as ONNX: {error}") from error
    # Query selection is the only top-k of a DINO; its second output are the indices.
    # Node names differ between versions of the exporter, but the operator does not.
    selections = [node for node in proto.graph.node if node.op_type == "TopK"]
    if len(selections) != 1:
        raise ExportError(f"{path}: found {len(selections)} TopK nodes, expected 1 as in a DINO")
    proto.graph.node.append(onnx.helper.make_node("Identity", [selections[0].output[1]], [_TOKENS]))
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info(_TOKENS, onnx.TensorProto.INT64, None)
    )
    return bytes(proto.SerializeToString())
