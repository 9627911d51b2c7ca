"""`dino env`: what a bug report needs, and what decides the speed on this machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from typing import Any

import typer

from dino_cli import options
from dino_core.errors import DinoError

app = typer.Typer(**options.SETTINGS)

PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "opencv-python-headless", "safetensors",
    "pycocotools", "onnx", "onnxruntime", "av",
)  # fmt: skip


@app.command(
    epilog=options.examples(
        "dino env                # for people",
        "dino env --json         # for scripts and bug reports",
    )
)
def env(as_json: options.Json = False) -> None:
    """Show versions, devices and which deformable-attention kernels run here, and why."""
    report = collect()
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
        return
    for section, content in report.items():
        if isinstance(content, dict):
            print(f"{section}:")
            for key, value in content.items():
                print(f"  {key}: {_shown(value)}")
        elif isinstance(content, list):
            print(f"{section}:")
            for item in content:
                print(f"  {_shown(item)}")
        elif section != "schema":
            print(f"{section}: {_shown(content)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items()) or "none"
    return "-" if value is None else str(value)


def collect() -> dict[str, Any]:
    """Everything that `dino env` shows, as plain JSON values."""
    from dino_core.metadata import library_version

    return {
        "schema": 1,
        "dino": library_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": _devices(),
        "cpu": _cpu(),
        "attention": _attention(),
        "malloc": _malloc(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    import torch

    devices: list[dict[str, Any]] = [{"name": "cpu"}]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": f"cuda:{index}",
                "model": properties.name,
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "capability": f"{properties.major}.{properties.minor}",
            }
        )
    if torch.backends.mps.is_available():
        devices.append({"name": "mps"})
    return devices


def _cpu() -> dict[str, Any]:
    import torch

    from dino_core.engine.model_setup import cpu_multiplies_bf16

    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "multiplies_bf16": cpu_multiplies_bf16(),
    }


def _attention() -> list[dict[str, Any]]:
    """What each kind of device would use, and how fast; a wrong DINO_OPS is shown, not raised."""
    import dataclasses

    from dino_core.ops.backend import backend_report
    from dino_core.ops.speed import encoder_forward_ms

    found: list[dict[str, Any]] = []
    # A measurement per kind of device, not per GPU.
    for device in sorted({str(device["name"]).split(":")[0] for device in _devices()}):
        try:
            report = dataclasses.asdict(backend_report(device))
            found.append({**report, "encoder_ms": round(encoder_forward_ms(device), 1)})
        except DinoError as error:
            found.append({"device": device, "name": None, "reason": error.message})
    return found


def _malloc() -> dict[str, Any]:
    from dino_core.engine.memory import keep_freed_memory

    names = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")
    return {
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "freed_memory_kept": keep_freed_memory(),
        "environment": {name: os.environ[name] for name in names if name in os.environ},
    }
