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

_override: Backend | None = None


@dataclass(frozen=True)
class BackendReport:
    """The choice for one device type, for `dino env`.

    Attributes:
        device: "cpu", "cuda", ...
        name: "compiled" or "reference".
        reason: Why, one sentence.
    """

    device: str
    name: Backend
    reason: str


def _forced() -> Backend | None:
    """What DINO_OPS asks for."""
    asked = os.environ.get(VARIABLE, "")
    if asked == "compiled":
        return "compiled"
    if asked == "reference":
        return "reference"
    if asked:
        raise ConfigError(
            f"{VARIABLE} is {asked!r}, it must be compiled or reference",
            "unset it to use the compiled operators where they are",
        )
    return None


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Forces a backend in a `with` block, whatever DINO_OPS says, as ONNX export must."""
    global _override
    before, _override = _override, name
    try:
        yield
    finally:
        _override = before


def backend_report(device: str = "cpu") -> BackendReport:
    """Chooses the backend for a device type.

    Args:
        device: A torch device type; "meta" counts as "cpu".

    Raises:
        ConfigError: DINO_OPS holds an unknown word.
        ExtensionError: The compiled operators are demanded and absent.
    """
    forced = _override or _forced()
    why = "inside use_backend" if _override else f"{VARIABLE}={forced}"
    if forced == "reference":
        return BackendReport(device, "reference", why)
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
            "reinstall with a C++ compiler (and nvcc for CUDA) on the path, with DINO_BUILD=cpu or "
            f"cuda to see why the build fails, or unset {VARIABLE}",
        )
    return BackendReport(device, "reference", missing)


def choose_backend(value: torch.Tensor) -> Backend:
    """The backend for one call; cheap, and constant to torch.compile and torch.export."""
    if torch.onnx.is_in_onnx_export():
        return "reference"  # ONNX has no such node
    return backend_report(value.device.type).name
