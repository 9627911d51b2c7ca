"""The machine's ceilings: matrix products, convolutions, copies in memory and in the cache."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial

import torch
from timing import seconds
from torch import nn

MATMUL_SIZE, CONV_CHANNELS, CONV_HW, COPY_FLOATS = 3072, 256, (100, 134), 2**26
TINY_MATMUL_SIZE, TINY_CONV_HW, TINY_COPY_FLOATS = 256, (10, 13), 2**18
CACHED_BYTES, CACHED_COPIES = 2**18, 50  # source and target fit into a core's own cache
TRIES = 3
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class Ceilings:
    """The highest rates seen so far.

    Attributes:
        rates: By name ("matmul fp32", "memory copy", ...). Products are in FLOPs per second, copies
            in bytes read and written per second.
    """

    def __init__(self, tiny: bool) -> None:
        self._calls: dict[str, tuple[float, Callable[[], object]]] = {}
        for dtype, name in DTYPES.items():
            self._calls[f"matmul {name}"] = _matmul(dtype, tiny)
            self._calls[f"convolution {name}"] = _convolution(dtype, tiny)
        self._calls["memory copy"] = _memory_copy(tiny)
        self._calls["cache copy"] = _cache_copy()
        self.rates = dict.fromkeys(self._calls, 0.0)

    def measure(self) -> None:
        """Measure each ceiling a few more times."""
        with torch.inference_mode():
            for name, (amount, call) in self._calls.items():
                shortest = min(seconds(call) for _ in range(TRIES))
                self.rates[name] = max(self.rates[name], amount / shortest)


def _matmul(dtype: torch.dtype, tiny: bool) -> tuple[float, Callable[[], object]]:
    size = TINY_MATMUL_SIZE if tiny else MATMUL_SIZE
    matrix = torch.randn(size, size).to(dtype)
    return 2 * size**3, partial(torch.mm, matrix, matrix)


def _convolution(dtype: torch.dtype, tiny: bool) -> tuple[float, Callable[[], object]]:
    """A 3x3 convolution in channels last."""
    height, width = TINY_CONV_HW if tiny else CONV_HW
    conv = nn.Conv2d(CONV_CHANNELS, CONV_CHANNELS, 3, padding=1, dtype=dtype)
    image = torch.randn(1, CONV_CHANNELS, height, width).to(dtype)
    image = image.to(memory_format=torch.channels_last)
    conv = conv.to(memory_format=torch.channels_last)
    return 2 * conv.weight.numel() * height * width, partial(conv, image)


def _memory_copy(tiny: bool) -> tuple[float, Callable[[], object]]:
    source = torch.randn(TINY_COPY_FLOATS if tiny else COPY_FLOATS)
    return 2 * source.nbytes, partial(torch.empty_like(source).copy_, source)


def _cache_copy() -> tuple[float, Callable[[], object]]:
    """Copy by one thread. Each core has such a cache, so n threads copy n times as much."""
    source, target = (ctypes.create_string_buffer(CACHED_BYTES) for _ in range(2))

    def copy() -> None:
        for _ in range(CACHED_COPIES):
            ctypes.memmove(target, source, CACHED_BYTES)

    return 2 * CACHED_BYTES * CACHED_COPIES * torch.get_num_threads(), copy
