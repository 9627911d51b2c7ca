"""The one place that chooses between the compiled operators and the pure-PyTorch reference."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from dino_core.errors import ConfigError, ExtensionError
from dino_core.ops._extension import EXTENSION

Backend = Literal["compiled", "reference"]

VARIABLE = "DINO_OPS"

# Set by `use_backend` only, and stronger than DINO_OPS: an export must be traced through the
# reference.
_override: Backend | None = None


@dataclass(frozen=True)
class BackendReport:
    """The backend chosen for one device type, which `dino env` shows.

    Attributes:
        device: "cpu", "cuda", ...
        name: "compiled" or "reference".
        reason: Why it was chosen, in a few words.
    """

    device: str
    name: Backend
    reason: str


def _forced() -> Backend | None:
    """The backend that DINO_OPS asks for; None if it is not set."""
    asked = os.environ.get(VARIABLE, "")
    if asked == "compiled":
        return "compiled"
    if asked == "reference":
        return "reference"
    if asked:
        raise ConfigError(
            f"{VARIABLE} is {asked!r}, it must be compiled or reference",
            "unset it to use the compiled operators where there are any",
        )
    return None


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Force a backend in a `with` block, whatever DINO_OPS says."""
    global _override
    before, _override = _override, name
    try:
        yield
    finally:
        _override = before


def backend_report(device: str = "cpu") -> BackendReport:
    """Choose the backend for a device type.

    Args:
        device: A torch device type; "meta" counts as "cpu".

    Raises:
        ConfigError: DINO_OPS has an unknown value.
        ExtensionError: The compiled operators are requested and not available.
    """
    forced = _override or _forced()
    why = "inside use_backend" if _override else f"{VARIABLE}={forced}"
    if forced == "reference":
        return BackendReport(device, "reference", why)
    # Tensors without values are traced through the operators' fake implementations, which are
    # registered where the CPU library is.
    kind = "cpu" if device == "meta" else device
    if kind in EXTENSION.devices:
        found = EXTENSION.cuda if kind == "cuda" else EXTENSION.cpu
        return BackendReport(device, "compiled", f"{why}, {found}" if forced else found)
    missing = {"cpu": EXTENSION.cpu, "cuda": EXTENSION.cuda}.get(
        kind, f"there are no kernels for {kind}"
    )
    if forced == "compiled":
        raise ExtensionError(
            f"{why}, but the compiled operators cannot run on {kind}: {missing}",
            "reinstall with a C++ compiler (and nvcc for CUDA) on PATH and DINO_BUILD=cpu or cuda, "
            f"which shows why the build fails; or unset {VARIABLE}",
        )
    return BackendReport(device, "reference", missing)


def choose_backend(value: torch.Tensor) -> Backend:
    """The backend for one call. It is cheap, and a constant for torch.compile and torch.export."""
    if torch.onnx.is_in_onnx_export():
        return "reference"  # ONNX has no such operator
    return backend_report(value.device.type).name
