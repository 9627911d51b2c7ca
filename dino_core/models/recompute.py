"""Gradient checkpointing: compute again in the backward instead of keeping activations."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, is_grad_enabled
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *args: object, enabled: bool) -> Tensor:
    """function(*args), whose intermediate results are not kept for the backward if `enabled`.

    The function draws no random numbers.
    """
    if not (enabled and is_grad_enabled()):
        return function(*args)
    result: Tensor = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return result
