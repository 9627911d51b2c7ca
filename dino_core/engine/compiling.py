"""`torch.compile` for the parts that repeat: the transformer layers and the backbone.

They are compiled in place, so parameters keep their names and checkpoints their format. Each kind
of layer is compiled once, for all its copies and all image sizes.
"""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch

from dino_core.errors import ConfigError
from dino_core.models.dino import Dino


def check_compiler(device: torch.device) -> None:
    """Raises ConfigError where `torch.compile` lacks its compiler."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise ConfigError(
                "train.compile: torch compiles for CUDA with triton, which is not installed",
                "pip install triton, or leave out train.compile",
            )
        return
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([named] if named else ["g++", "clang++", "c++"])):
        raise ConfigError(
            f"train.compile: no C++ compiler ({named or 'g++, clang++'})",
            "install one (apt-get install g++), or leave out train.compile",
        )


def compile_parts(model: Dino, backend: str = "inductor") -> None:
    """Let the repeating parts of `model` be compiled in place, at their first use."""
    for part in (*model.backbone.parts_to_compile(), *model.encoder.layers, *model.decoder.layers):
        # With dynamic shapes, one compilation serves the batches of all image sizes.
        part.compile(dynamic=True, backend=backend)


def is_compiler_error(error: BaseException) -> bool:
    """Whether an error comes from torch.compile rather than from the network."""
    compilers = ("torch._dynamo", "torch._inductor")
    # The base classes count, too, since a backend may derive its own errors.
    return any(kind.__module__.startswith(compilers) for kind in type(error).__mro__)
