"""Inputs of the operator for its tests."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """Arguments of ms_deform_attn; locations reach 20 % beyond every border."""

    value: Tensor
    spatial_shapes: tuple[tuple[int, int], ...]
    locations: Tensor
    weights: Tensor

    @property
    def flat_shapes(self) -> list[int]:
        return [size for shape in self.spatial_shapes for size in shape]

    @property
    def args(self) -> tuple[Tensor, tuple[tuple[int, int], ...], Tensor, Tensor]:
        return self.value, self.spatial_shapes, self.locations, self.weights

    def with_gradients(self) -> Inputs:
        tensors = [t.detach().clone().requires_grad_() for t in self.tensors]
        return Inputs(tensors[0], self.spatial_shapes, tensors[1], tensors[2])

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.value, self.locations, self.weights


def make_inputs(
    *,
    batch: int = 2,
    queries: int = 21,
    heads: int = 3,
    channels: int = 32,
    points: int = 4,
    shapes: tuple[tuple[int, int], ...] = ((9, 7), (5, 4), (1, 1)),
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    tokens = sum(height * width for height, width in shapes)
    value = torch.randn(batch, tokens, heads, channels, generator=generator, dtype=precise)
    size = (batch, queries, heads, len(shapes), points)
    locations = torch.rand(*size, 2, generator=generator, dtype=precise) * 1.4 - 0.2
    weights = torch.rand(size, generator=generator, dtype=precise)
    weights = weights / weights.sum((-2, -1), keepdim=True)
    return Inputs(value.to(device, dtype), shapes, locations.to(device), weights.to(device))


def run_with_isa(isa: str, code: str) -> None:
    """Run Python code that may import `ops.*` with that instruction set.

    A processor without it runs the best one below it: then the case is a repeat.
    """
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ["PYTHONPATH"]])
    environment = {**os.environ, "DINO_CPU": isa, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
