"""Loads the compiled operators: libraries of PyTorch's stable ABI in the folder of this file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent
_CPU_LIBRARY = _FOLDER / "libdino_ops.so"
_CUDA_LIBRARY = _FOLDER / "libdino_ops_cuda.so"


@dataclass(frozen=True)
class Extension:
    """Which compiled kernels this process has, and why it lacks the others.

    Attributes:
        devices: Device types that have kernels.
        cpu: What became of the CPU library, in a few words.
        cuda: What became of the CUDA library, in a few words.
    """

    devices: frozenset[str]
    cpu: str
    cuda: str


def _load(library: Path) -> str | None:
    """Load one library. Returns what went wrong, or None."""
    if not library.exists():
        return f"{library.name} was not built"
    try:
        # Libraries of the stable ABI register their operators when they are loaded; there is no
        # Python module to import.
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    # A library built against another torch may miss symbols. The reference then does the work, and
    # `dino env` shows this text.
    except OSError as error:
        return f"{library.name} does not load under torch {torch.__version__}: {error}"
    return None


def _load_extension() -> Extension:
    """Load both libraries. The CUDA one needs the schemas in the CPU one, and a CUDA torch."""
    problem = _load(_CPU_LIBRARY)
    if problem is not None:
        return Extension(frozenset(), problem, "needs the CPU library")
    cpu = f"loaded {_CPU_LIBRARY.name}"
    # A CPU build of torch lacks the CUDA libraries that this one links to, whether or not there is
    # a GPU.
    if torch.version.cuda is None:
        return Extension(frozenset({"cpu"}), cpu, "this torch has no CUDA")
    problem = _load(_CUDA_LIBRARY)
    if problem is not None:
        return Extension(frozenset({"cpu"}), cpu, problem)
    return Extension(frozenset({"cpu", "cuda"}), cpu, f"loaded {_CUDA_LIBRARY.name}")


# Loaded at import, so that it is a constant for torch.compile and torch.export.
EXTENSION = _load_extension()
