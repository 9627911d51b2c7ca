"""A model in ONNX Runtime; torch is not needed and not imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_core.checkpoints.paths import folder_error
from dino_core.errors import CheckpointError, ConfigError
from dino_core.metadata import METADATA_KEY, from_json
from dino_core.process import usable_cores

IMAGES, PADDING_MASK = "images", "padding_mask"
LOGITS, BOXES = "logits", "boxes"
_INSTALL_HINT = 'pip install "dino-detector[onnx]"'


class OnnxRuntime:
    """Runs an ONNX file that `dino export` wrote.

    Attributes:
        path: The file.
        meta: What it says about itself.
        input_hw: Fixed (H, W) of its input; None where both are free.
        input_batch: Images it takes at once; None where free.
    """

    def __init__(self, path: str | Path, device: str = "auto", threads: int | None = None) -> None:
        """Load the file.

        Args:
            path: An ONNX file with the model's metadata.
            device: "auto", "cpu", or "cuda" where the installed onnxruntime has it.
            threads: Threads of an operator; as many as this process may use where None.

        Raises:
            CheckpointError: onnxruntime is missing, or the file is not such a model.
            ConfigError: the device is not available to onnxruntime.
        """
        self.path = Path(path)
        self._session = _open_session(self.path, device, threads)
        self.meta = from_json(_metadata_text(self.path, self._session), str(self.path))
        shape = self._input_shape()
        self.input_batch: int | None = shape[0] if isinstance(shape[0], int) else None
        self.input_hw: tuple[int, int] | None = None
        if isinstance(shape[2], int) and isinstance(shape[3], int):
            self.input_hw = (shape[2], shape[3])

    def _input_shape(self) -> list[int | str | None]:
        inputs = {entry.name: entry for entry in self._session.get_inputs()}
        outputs = {entry.name for entry in self._session.get_outputs()}
        if set(inputs) != {IMAGES, PADDING_MASK} or not {LOGITS, BOXES} <= outputs:
            raise CheckpointError(
                f"{self.path}: not a detector that `dino export` wrote (inputs "
                f"{', '.join(inputs)}; outputs {', '.join(sorted(outputs))})",
                "export the model with this version of dino",
            )
        return list(inputs[IMAGES].shape)

    def run(
        self, images: NDArray[np.float32], padding_mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Detect.

        Args:
            images: (B, 3, H, W) float32, normalised, zero-padded at the bottom and right.
            padding_mask: (B, H, W) bool, True on padding.

        Returns:
            logits (B, Q, C) and boxes_cxcywh (B, Q, 4), float32.
        """
        size = self.input_batch or len(images)
        parts = [
            self._run_batch(images[i : i + size], padding_mask[i : i + size], size)
            for i in range(0, len(images), size)
        ]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _run_batch(
        self, images: NDArray[np.float32], padding_mask: NDArray[np.bool_], size: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Up to `size` images; a fixed batch is filled up with its last image."""
        count = len(images)
        if count < size:
            rows = np.minimum(np.arange(size), count - 1)
            images, padding_mask = images[rows], padding_mask[rows]
        inputs = {IMAGES: images, PADDING_MASK: padding_mask}
        logits, boxes = self._session.run([LOGITS, BOXES], inputs)
        return (
            np.asarray(logits[:count], dtype=np.float32),
            np.asarray(boxes[:count], dtype=np.float32),
        )


def _open_session(path: Path, device: str, threads: int | None) -> Any:
    if path.is_dir():
        raise folder_error(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    try:
        import onnxruntime
    except ImportError as error:
        raise CheckpointError(f"{path}: running ONNX needs onnxruntime", _INSTALL_HINT) from error
    options = onnxruntime.SessionOptions()
    # onnxruntime would count the cores of the whole machine.
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = 3  # errors only: the rest is for developers of onnxruntime
    providers = _providers(device, onnxruntime.get_available_providers())
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path}: onnxruntime cannot load it ({reason})", "truncated, or not an ONNX file?"
        ) from error


def _providers(device: str, available: list[str]) -> list[Any]:
    kind, _, number = device.partition(":")
    if kind in ("auto", "cpu"):
        return ["CPUExecutionProvider"]
    if kind != "cuda":
        raise ConfigError(f"an ONNX model runs on cpu or cuda, not on '{device}'")
    if "CUDAExecutionProvider" not in available:
        raise ConfigError(
            f"device '{device}': the installed onnxruntime has no CUDA",
            "pip install onnxruntime-gpu, or --device cpu",
        )
    return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]


def _metadata_text(path: Path, session: Any) -> str:
    found = session.get_modelmeta().custom_metadata_map
    if METADATA_KEY not in found:
        raise CheckpointError(
            f"{path}: an ONNX file, but not one of dino's (no metadata)",
            "make it with `dino export`",
        )
    return str(found[METADATA_KEY])
