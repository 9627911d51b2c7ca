"""A model in PyTorch, on any device, as a function of numpy arrays."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dino_core.errors import ConfigError
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
        dtype: Of convolutions and matrix products; weights, coordinates and results are float32.
        input_hw: None: the network takes any size.
    """

    def __init__(self, model: Dino, device: str = "auto", dtype: str = "auto") -> None:
        """Move the model to its device.

        Args:
            model: The network; it is set to evaluation mode.
            device: "auto" (CUDA where there is one, else CPU), "cpu", "cuda", "cuda:1", "mps".
            dtype: "auto" (fp32, the published model's numbers), "fp32", "bf16" or "fp16".

        Raises:
            ConfigError: no such device here, or no such dtype.
        """
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype)
        backbone = model.backbone
        self.model = model.eval().to(self.device)
        self.model.to(memory_format=backbone.memory_format(self.device))
        backbone.fold_batch_norm(keep=True)
        self.input_hw: tuple[int, int] | None = None

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
        return run_model(self.model, images, padding_mask, self.device, self.dtype)


def run_model(
    model: nn.Module,
    images: NDArray[np.float32],
    padding_mask: NDArray[np.bool_],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One forward pass on arrays, as `TorchRuntime.run`, of a model that is on `device` already."""
    autocast = torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
    with torch.inference_mode(), autocast:
        output = model(
            torch.from_numpy(images).to(device), torch.from_numpy(padding_mask).to(device)
        )
    logits, boxes = output.logits.float().cpu(), output.boxes_cxcywh.float().cpu()
    return logits.numpy(), boxes.numpy()


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: the name is none, or this machine has no such device.
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
            "--device auto uses what is there",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device '{name}': not available here", "--device auto")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device '{name}' is not supported", "auto, cpu, cuda, cuda:1 or mps")
    return device


def resolve_dtype(name: str) -> torch.dtype:
    """The torch type of a `--dtype`; "auto" is float32. Raises ConfigError on another name."""
    if name not in _DTYPES:
        raise ConfigError(f"dtype '{name}' is unknown", f"known: {', '.join(_DTYPES)}")
    return _DTYPES[name]
