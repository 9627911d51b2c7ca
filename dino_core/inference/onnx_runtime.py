"""A model in ONNX Runtime; torch is not needed and not imported."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_core.checkpoints.header import check_file
from dino_core.errors import CheckpointError, ConfigError
from dino_core.inference.pipeline import Arrays
from dino_core.limits import MAX_IMAGE_SIZE, shown
from dino_core.metadata import METADATA_KEY, CheckpointMeta, from_json
from dino_core.process import usable_cores

# The tensor names of an exported file; the exporter reads them from here.
IMAGES, PADDING_MASK = "images", "padding_mask"
LOGITS, BOXES = "logits", "boxes"
_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)")
_MAX_INPUT_BYTES = 512 << 20  # of the images of one run
_FREE_SIZE = 320  # pixels of a side that a file leaves open, to compute the bytes of its input
_INSTALL_HINT = 'pip install "dino-detector[onnx]"'


class OnnxRuntime:
    """Runs an ONNX file that `dino export` wrote.

    Attributes:
        path: The file.
        meta: The metadata inside it.
        input_hw: Fixed (H, W) of its input; None where both are free.
        input_batch: Fixed number of images per run; None where free.
    """

    def __init__(
        self,
        path: str | Path,
        device: str = "auto",
        threads: int | None = None,
        *,
        graph: bytes | None = None,
    ) -> None:
        """Load the file.

        Args:
            path: An ONNX file with the model's metadata.
            device: "auto", "cpu", or "cuda" where the installed onnxruntime supports it.
            threads: Threads per operator; as many as this process may use where None.
            graph: A serialized model to run in place of the file's content, for an exporter that
                asks the file for more outputs.

        Raises:
            CheckpointError: onnxruntime is missing, or the file is not such a model.
            ConfigError: the device is not available to onnxruntime.
        """
        self.path = Path(path)
        self._session = _open_session(self.path, graph, device, threads)
        self.meta = from_json(_metadata_text(self.path, self._session), str(self.path))
        shape = self._input_shape()
        self._check_declared_outputs()
        self.input_batch: int | None = shape[0] if isinstance(shape[0], int) else None
        self.input_hw: tuple[int, int] | None = None
        if isinstance(shape[2], int) and isinstance(shape[3], int):
            self.input_hw = (shape[2], shape[3])

    def _input_shape(self) -> list[int | str | None]:
        """The shape of the images, in which a free size is not an int.

        Sizes beyond the limits are refused, since the input is allocated before the model runs.
        """
        inputs = {entry.name: entry for entry in self._session.get_inputs()}
        outputs = {entry.name for entry in self._session.get_outputs()}
        if set(inputs) != {IMAGES, PADDING_MASK} or not {LOGITS, BOXES} <= outputs:
            raise CheckpointError(
                f"{self.path}: not a detector that `dino export` wrote (inputs "
                f"{', '.join(inputs)}; outputs {', '.join(sorted(outputs))})",
                "export the model with this version of dino",
            )
        shape, mask = list(inputs[IMAGES].shape), list(inputs[PADDING_MASK].shape)
        fixed = [size for size in (*shape, *mask) if isinstance(size, int)]
        if (
            len(shape) != 4
            or shape[1] != 3
            or len(mask) != 3
            or not all(
                a == b for a, b in zip([shape[0], *shape[2:]], mask, strict=True) if _fixed(a, b)
            )
            or min(fixed) < 1
            or (inputs[IMAGES].type, inputs[PADDING_MASK].type) != ("tensor(float)", "tensor(bool)")
        ):
            raise self._unlike(
                "its input", f"{IMAGES} {shown(shape)}, {PADDING_MASK} {shown(mask)}"
            )
        nbytes = 4 * math.prod(n if isinstance(n, int) else _FREE_SIZE for n in shape[1:])
        nbytes *= shape[0] if isinstance(shape[0], int) else 1
        sides = [side for side in shape[2:] if isinstance(side, int)]
        if nbytes > _MAX_INPUT_BYTES or max(sides, default=0) > MAX_IMAGE_SIZE:
            raise CheckpointError(
                f"{self.path}: its input has the fixed shape {shown(shape)}, which is more than "
                f"{MAX_IMAGE_SIZE} pixels a side or {_MAX_INPUT_BYTES >> 20} MiB",
                "export it with a smaller --image-size and batch, or with free sizes",
            )
        return shape

    def _check_declared_outputs(self) -> None:
        """Compare the outputs that the file declares with its metadata; free sizes fit anything."""
        outputs = {entry.name: entry for entry in self._session.get_outputs()}
        shapes = [outputs[name].shape for name in (LOGITS, BOXES)]
        declared = [
            [size if isinstance(size, int) else None for size in shape] if shape else None
            for shape in shapes
        ]
        if any(outputs[name].type not in _FLOATS for name in (LOGITS, BOXES)) or not all(
            shape is None or _fits(shape, columns)
            for shape, columns in zip(declared, self._columns(), strict=True)
        ):
            kinds = ", ".join(f"{n} {shown(outputs[n].shape)} {outputs[n].type}" for n in outputs)
            raise self._unlike("its output", kinds)

    def _columns(self) -> tuple[int, int]:
        """Number of columns of the logits and of the boxes, by the metadata."""
        return len(self.meta.classes), 4

    def _unlike(self, what: str, found: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {what} is not that of a detector of {len(self.meta.classes)} classes "
            f"(found {found})",
            "the file is damaged or was changed; export the model again",
        )

    def run(self, images: NDArray[np.float32], padding_mask: NDArray[np.bool_]) -> Arrays:
        """Run the network on any number of images, in parts where the file's batch is fixed.

        Args:
            images: (B, 3, H, W) float32, normalized, zero-padded at the bottom and right.
            padding_mask: (B, H, W) bool, True on padding.

        Returns:
            logits (B, Q, C) and boxes_cxcywh (B, Q, 4), float32.
        """
        size = self.input_batch or len(images)
        parts = [
            self._run_part(images[i : i + size], padding_mask[i : i + size], size)
            for i in range(0, len(images), size)
        ]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _run_part(
        self, images: NDArray[np.float32], padding_mask: NDArray[np.bool_], size: int
    ) -> Arrays:
        """Run at most `size` images; a fixed batch is filled by repeating the last image."""
        count = len(images)
        if count < size:
            rows = np.minimum(np.arange(size), count - 1)
            images, padding_mask = images[rows], padding_mask[rows]
        logits, boxes = self.run_for([LOGITS, BOXES], images, padding_mask)
        shapes = [list(logits.shape), list(boxes.shape)]
        if (
            not all(_fits(s, c) for s, c in zip(shapes, self._columns(), strict=True))
            or shapes[0][:2] != shapes[1][:2]
            or shapes[0][0] != size
        ):
            found = f"{LOGITS} {shapes[0]}, {BOXES} {shapes[1]} for {size} images"
            raise self._unlike("its output", found)
        return (
            np.asarray(logits[:count], dtype=np.float32),
            np.asarray(boxes[:count], dtype=np.float32),
        )

    def run_for(
        self,
        outputs: Sequence[str],
        images: NDArray[np.float32],
        padding_mask: NDArray[np.bool_],
    ) -> list[NDArray[Any]]:
        """Run one batch of exactly the file's size and return the named outputs as they are.

        Raises:
            CheckpointError: onnxruntime refuses the input or fails.
        """
        inputs = {IMAGES: images, PADDING_MASK: padding_mask}
        try:
            return list(self._session.run(list(outputs), inputs))
        except Exception as error:  # onnxruntime's own exceptions share no public base class
            raise CheckpointError(
                f"{self.path}: onnxruntime cannot run it for images of shape {images.shape} "
                f"({_reason(error)})",
                "export the model again with this version of dino",
            ) from error


def _fixed(*sizes: int | str | None) -> bool:
    return all(isinstance(size, int) for size in sizes)


def _fits(shape: Sequence[int | None], columns: int) -> bool:
    """Whether an output has the shape (B, Q, columns), where None is a free size."""
    return len(shape) == 3 and 0 not in shape and shape[2] in (columns, None)


def _reason(error: Exception) -> str:
    """The first line of an error of onnxruntime, without its codes and places in its source."""
    line = str(error).partition("\n")[0]
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
    return re.sub(r"Load model from .* failed: ?|\S+\.(?:cc|h):\d+ (?:\S+::)?\w+ ", "", line)


def open_onnx(model: str | Path, device: str, dtype: str) -> tuple[OnnxRuntime, CheckpointMeta]:
    """Open an ONNX file.

    Raises:
        CheckpointError: onnxruntime is missing, or the file is not such a model.
        ConfigError: another dtype than the file's is requested, or the device is not available.
    """
    if dtype not in ("auto", "fp32"):
        raise ConfigError(
            f"{model}: the dtype of an ONNX file is fixed when it is exported, not '{dtype}'",
            "use --dtype auto",
        )
    runtime = OnnxRuntime(model, device)
    return runtime, runtime.meta


def _open_session(path: Path, graph: bytes | None, device: str, threads: int | None) -> Any:
    check_file(path)
    try:
        import onnxruntime
    except ImportError as error:
        raise CheckpointError(f"{path}: running ONNX needs onnxruntime", _INSTALL_HINT) from error
    options = onnxruntime.SessionOptions()
    # By default onnxruntime would use the cores of the whole machine, not those of this process.
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = 3  # errors only; the rest is for developers of onnxruntime
    providers = _providers(device, onnxruntime.get_available_providers())
    try:
        return onnxruntime.InferenceSession(graph or str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        raise CheckpointError(
            f"{path}: onnxruntime cannot load it ({_reason(error)})",
            "truncated, or not an ONNX file?",
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
            f"{path}: an ONNX file without the metadata of a dino model",
            "export the model with `dino export`",
        )
    return str(found[METADATA_KEY])
