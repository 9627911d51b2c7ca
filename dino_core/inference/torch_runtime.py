"""A model in PyTorch, on any device, as a function of numpy arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dino_core.checkpoints.io import build_model
from dino_core.checkpoints.zoo import load
from dino_core.errors import ConfigError
from dino_core.inference.pipeline import Arrays
from dino_core.metadata import CheckpointMeta
from dino_core.models.dino import Dino

_DTYPES = {
    "auto": torch.float32,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class TorchRuntime:
    """Runs a `Dino` in evaluation mode.

    Attributes:
        model: The network, on `device`.
        device: Where it runs.
        dtype: The dtype of convolutions and matrix products. Weights, coordinates and results are
            float32.
        input_hw: None, since the network accepts any size.
    """

    def __init__(self, model: Dino, device: str = "auto", dtype: str = "auto") -> None:
        """Move the model to its device.

        Args:
            model: The network; it is set to evaluation mode.
            device: "auto" (CUDA where there is one, else CPU), "cpu", "cuda", "cuda:1", "mps".
            dtype: "auto" (fp32, which gives the published model's numbers), "fp32", "bf16" or
                "fp16".

        Raises:
            ConfigError: the device is not available, or the dtype is unknown.
        """
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype)
        backbone = model.backbone
        self.model = model.eval().to(self.device)
        # Once here, instead of at each call for each convolution.
        self.model.to(memory_format=backbone.memory_format(self.device))
        backbone.fold_batch_norm(keep=True)
        self.input_hw: tuple[int, int] | None = None

    def run(self, images: NDArray[np.float32], padding_mask: NDArray[np.bool_]) -> Arrays:
        """Run the network on one batch.

        Args:
            images: (B, 3, H, W) float32, normalized, zero-padded at the bottom and right.
            padding_mask: (B, H, W) bool, True on padding.

        Returns:
            logits (B, Q, C) and boxes_cxcywh (B, Q, 4), float32.
        """
        return run_model(self.model, images, padding_mask, device=self.device, dtype=self.dtype)


def open_torch(model: str | Path, device: str, dtype: str) -> tuple[TorchRuntime, CheckpointMeta]:
    """Load a model's name or file, of this project or another, into a runtime.

    Raises:
        CheckpointError: the model is missing or malformed.
        ConfigError: the device or dtype is unknown or not available.
    """
    # Refused before the weights are read, which takes seconds for a large model.
    resolve_device(device)
    resolve_dtype(dtype)
    checkpoint = load(model)
    return TorchRuntime(build_model(checkpoint, model), device, dtype), checkpoint.meta


def run_model(
    model: nn.Module,
    images: NDArray[np.float32],
    padding_mask: NDArray[np.bool_],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Arrays:
    """Run one forward pass on arrays, as `TorchRuntime.run`.

    The model is used as it is: it is on `device` already, and neither its mode nor its batch norms
    change, so that a model in training can be evaluated.
    """
    autocast = torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
    # Autocast instead of `.half()`: the layers that need float32 keep it.
    with torch.inference_mode(), autocast:
        output = model(
            torch.from_numpy(images).to(device), torch.from_numpy(padding_mask).to(device)
        )
    logits, boxes = output.logits.float().cpu(), output.boxes_cxcywh.float().cpu()
    return logits.numpy(), boxes.numpy()


def resolve_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: the name is unknown, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"device '{name}' is unknown", "auto, cpu, cuda, cuda:1 or mps"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(
            f"device '{name}': torch {torch.__version__} sees {count} CUDA GPUs",
            "--device auto uses what is available",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device '{name}' is not available on this machine", "use --device auto")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device '{name}' is not supported", "auto, cpu, cuda, cuda:1 or mps")
    return device


def resolve_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of that name; "auto" is float32.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in _DTYPES:
        raise ConfigError(f"dtype '{name}' is unknown", f"known: {', '.join(_DTYPES)}")
    return _DTYPES[name]
