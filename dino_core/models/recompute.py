"""Gradient checkpointing: recompute activations in the backward pass instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, is_grad_enabled
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *args: object, enabled: bool) -> Tensor:
    """Call `function(*args)`; if `enabled`, its intermediate results are not kept for the backward.

    The function must draw no random numbers, since the state of the generators is not restored.
    """
    if not (enabled and is_grad_enabled()):
        return function(*args)
    # The reentrant variant gives no gradients where none of the inputs needs one. The generators'
    # states are not saved because the functions draw nothing.
    result: Tensor = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return result
