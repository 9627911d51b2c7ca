"""Memory: how much is used and free, and keeping freed memory in the process.

Without the latter, half the time of a training step on a CPU goes into page faults, since every
large temporary tensor is fresh memory of the operating system.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD_BYTES = 256 * 2**20

_KERNELS_KEPT = 4096
"""oneDNN compiles a kernel for each shape and keeps 1024 by default. A training step of dino-nano
runs about 400, and its batches come in a dozen shapes. Keeping all saves 7 % of the time
(RESULTS.md)."""


def keep_freed_memory() -> bool:
    """Let glibc reuse freed blocks instead of returning them to the operating system.

    Returns:
        Whether it took effect (on Linux with glibc only).
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # No block comes from mmap, since such a block is returned when it is freed. The heap is never
    # trimmed (-1 turns that off), and grows in steps of 256 MiB.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD_BYTES))
    results = [mallopt(key, value) for key, value in settings]
    return all(result == 1 for result in results)


def keep_compiled_kernels() -> None:
    """Let oneDNN keep its kernels for all shapes of a training run.

    It must be called before oneDNN is used. A value that the environment sets already is kept
    (oneDNN documentation, "Primitive Cache").
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_KERNELS_KEPT))


def peak_memory_mb() -> float:
    """The most memory that this process has held so far, in MiB."""
    # Linux counts KiB, macOS bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


def resident_memory_mb() -> float:
    """What this process holds now, in MiB; its peak where the system does not report that."""
    try:
        # The second number is the resident set, in pages.
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return peak_memory_mb()
    return pages * resource.getpagesize() / 2**20


def free_memory_mb(device: torch.device) -> float | None:
    """Free memory of the GPU, or of the machine and its container, in MiB.

    Returns:
        None where the system does not report it.
    """
    if device.type == "cuda":
        import torch  # not at the top: prediction by ONNX Runtime uses this module without torch

        free, _ = torch.cuda.mem_get_info(device)
        # Memory that PyTorch holds without using it is free for this process.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (free + cached) / 2**20
    if device.type != "cpu":
        return None
    # A container may allow less than the machine has.
    amounts = [mb for mb in (_available_mb(), _container_mb()) if mb is not None]
    return min(amounts, default=None)


def _available_mb() -> float | None:
    """Linux's own estimate of the memory that is available without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines if line.startswith("MemAvailable:"))
    return next((int(words[1]) / 1024 for words in found), None)


def _container_mb() -> float | None:
    """What the container's limit (cgroup 2, else 1) leaves; None without a limit."""
    root = Path("/sys/fs/cgroup")
    for limit, used in (
        (root / "memory.max", root / "memory.current"),
        (root / "memory/memory.limit_in_bytes", root / "memory/memory.usage_in_bytes"),
    ):
        try:
            return max(0.0, (int(limit.read_text()) - int(used.read_text())) / 2**20)
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
    return None
