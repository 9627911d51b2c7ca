"""An exponential moving average of the weights, which is evaluated and saved (not in the paper)."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Ema(Generic[M]):
    """Exponential moving average of a model's parameters; buffers are copied.

    Attributes:
        model: The averaged model, in evaluation mode and without gradients.
        updates: Number of calls of `update`.
    """

    def __init__(self, model: M, decay: float, shadow: M | None = None) -> None:
        """Start from the current weights of `model`.

        Args:
            model: The live model.
            decay: Final decay; see `decay_at`.
            shadow: A copy of `model`, for a sharded model, which cannot be copied; None makes one.
        """
        # Evaluation mode is the shadow's permanent mode: it is never trained, only predicted with.
        self.model: M = (copy.deepcopy(model) if shadow is None else shadow).eval()
        self.model.requires_grad_(False)
        self.decay = decay
        self.updates = 0
        # A frozen parameter never changes, so it equals its average already.
        pairs = [
            # Both models register their parameters in the same order, as copies of each other.
            (shadow, live)
            for shadow, live in zip(self.model.parameters(), model.parameters(), strict=True)
            if live.requires_grad
        ]
        self._shadow: list[Tensor] = [shadow for shadow, _ in pairs]
        self._live: list[Tensor] = [live for _, live in pairs]
        self._shadow_buffers = list(self.model.buffers())
        self._live_buffers = list(model.buffers())

    def decay_at(self, updates: int) -> float:
        """The decay after `updates` updates; it starts low, so that the start is soon forgotten."""
        # The formula of TensorFlow's ExponentialMovingAverage with `num_updates`.
        return min(self.decay, (1 + updates) / (10 + updates))

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current weights of the live model."""
        weight = 1.0 - self.decay_at(self.updates)
        # One call for all tensors instead of hundreds, which matters on a GPU: shadow += weight *
        # (live - shadow).
        torch._foreach_lerp_(self._shadow, self._live, weight)
        if self._shadow_buffers:
            # Buffers are statistics and not weights, so there is nothing to average.
            torch._foreach_copy_(self._shadow_buffers, self._live_buffers)
        self.updates += 1
