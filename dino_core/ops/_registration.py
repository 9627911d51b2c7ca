"""What the registrations of all compiled operators share: one device, no second derivative."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor


def check_one_device(operator: str, **tensors: Tensor) -> None:
    """Refuse tensors on several devices, one of which has no memory.

    PyTorch calls the fake implementation as soon as one tensor is on the meta device. The result
    would then be uninitialized memory on the device of `value`.

    Raises:
        RuntimeError: The tensors are on several devices.
    """
    (first, tensor), *others = tensors.items()
    for name, other in others:
        if other.device != tensor.device:
            raise RuntimeError(
                f"{operator}: {name} must be on the device of {first}, which is on "
                f"{tensor.device}; found it on {other.device}"
            )


def refuse_second_derivative(gradient: str, operator: str) -> None:
    """Make the derivative of an operator's gradient an error. Without this it would be zero.

    Args:
        gradient: Name of the operator that computes the gradient.
        operator: Name of the operator that it is the gradient of, for the error.
    """

    def backward(ctx: Any, *grads: Tensor | None) -> NoReturn:
        raise RuntimeError(
            f"{operator} has no second derivative: {gradient} cannot be differentiated. "
            "Leave out create_graph=True, or compute with the reference backend, which has one "
            "(DINO_OPS=reference, or dino_core.ops.backend.use_backend('reference'))"
        )

    torch.library.register_autograd(f"dino::{gradient}", backward)
