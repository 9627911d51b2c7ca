"""The kinds of model files and how each is run: one row per suffix.

A new kind of artifact is one file with a runtime and one row here. The packages of a kind are
imported when a model of that kind is opened, so predicting with an ONNX file imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dino_core.checkpoints.header import read_header
from dino_core.inference.pipeline import Runtime
from dino_core.metadata import CheckpointMeta


@dataclass(frozen=True)
class RuntimeKind:
    """How one kind of model file is run.

    Attributes:
        open: From a model's name or file, a device and a dtype to its runtime and metadata.
        read_metadata: From a file to its metadata, without preparing it to run where possible.
    """

    open: Callable[[str | Path, str, str], tuple[Runtime, CheckpointMeta]]
    read_metadata: Callable[[Path], CheckpointMeta]


def _open_torch(model: str | Path, device: str, dtype: str) -> tuple[Runtime, CheckpointMeta]:
    from dino_core.inference.torch_runtime import open_torch

    return open_torch(model, device, dtype)


def _open_onnx(model: str | Path, device: str, dtype: str) -> tuple[Runtime, CheckpointMeta]:
    from dino_core.inference.onnx_runtime import open_onnx

    return open_onnx(model, device, dtype)


def _read_onnx_metadata(path: Path) -> CheckpointMeta:
    from dino_core.inference.onnx_runtime import OnnxRuntime

    return OnnxRuntime(path).meta


_TORCH = RuntimeKind(_open_torch, read_header)

RUNTIMES: dict[str, RuntimeKind] = {
    ".safetensors": _TORCH,
    ".onnx": RuntimeKind(_open_onnx, _read_onnx_metadata),
}
"""File suffix to kind. Names and checkpoints of other projects run in torch."""


def open_runtime(model: str | Path, device: str, dtype: str) -> tuple[Runtime, CheckpointMeta]:
    """Open a model for prediction.

    Args:
        model: A model's name or file.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        dtype: "auto", "fp32", "bf16" or "fp16".

    Raises:
        CheckpointError: the model is missing or malformed, or a package to run it is missing.
        ConfigError: the device or dtype is unknown or not available.
    """
    return _kind(model).open(model, device, dtype)


def read_metadata(path: str | Path) -> CheckpointMeta:
    """Read the metadata of a model file of ours; imports no torch.

    Raises:
        CheckpointError: the file is missing, unreadable, truncated, of another kind, or not ours.
    """
    return _kind(path).read_metadata(Path(path))


def _kind(model: str | Path) -> RuntimeKind:
    return RUNTIMES.get(Path(model).suffix.lower(), _TORCH)
