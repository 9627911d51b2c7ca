"""Multi-scale deformable attention (Deformable DETR, section 4.1) by the compiled operators.

Fake tensors and gradients are registered here, so torch.compile and torch.export see one operator.
Unlike the original CUDA extension it also runs on CPUs, deterministically, with any torch >= 2.10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from dino_core.ops._extension import EXTENSION
from dino_core.ops._registration import check_one_device, refuse_second_derivative
from dino_core.ops.backend import choose_backend
from dino_core.ops.reference import ms_deform_attn_reference

# A constant, since torch 2.10's compiler cannot trace torch.amp.is_autocast_available.
_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The weighted sum of bilinear samples of every level, by the best backend for the device.

    Under autocast `value` is cast to autocast's dtype. Locations and weights are always float32
    (float64 with a float64 `value`), so that coordinates never lose precision.

    Args:
        value: (B, S, M, D), the tokens of all levels, each level row by row.
        spatial_shapes: (height, width) of each level; their products sum to S.
        sampling_locations: (B, Q, M, L, P, 2), xy in [0, 1] of the level.
        attention_weights: (B, Q, M, L, P).

    Returns:
        (B, Q, M * D) in the dtype of `value`. A location outside its level contributes zero, as do
        NaN and infinity.

    Raises:
        ValueError: Shapes or devices do not fit together.
        TypeError: A tensor does not hold floating-point numbers.
        RuntimeError: The compiled operator refused sizes or memory, or a second derivative.
        ExtensionError: DINO_OPS asks for the compiled operators and they are not available.
    """
    if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # sizes are tensors
        _check(value, spatial_shapes, sampling_locations, attention_weights)
    kind = value.device.type
    if (
        value.dtype == torch.float32
        and kind in _AUTOCAST_DEVICES
        and torch.is_autocast_enabled(kind)
    ):
        value = value.to(torch.get_autocast_dtype(kind))
    # float64 is kept for gradcheck. bfloat16 would not do for a coordinate: its numbers between 0.5
    # and 1 are 1/256 apart, which is several pixels.
    precise = torch.float64 if value.dtype == torch.float64 else torch.float32
    sampling_locations = sampling_locations.to(precise)
    attention_weights = attention_weights.to(precise)
    if choose_backend(value) == "reference":
        return ms_deform_attn_reference(
            value, spatial_shapes, sampling_locations, attention_weights
        )
    flat = [size for shape in spatial_shapes for size in shape]
    dtype = value.dtype
    if dtype == torch.float16 and kind == "cpu":
        value = value.float()  # no CPU kernel reads float16; nothing is lost
    result = torch.ops.dino.ms_deform_attn(
        # The kernels compute addresses from the shapes alone.
        value.contiguous(),
        flat,
        sampling_locations.contiguous(),
        attention_weights.contiguous(),
    )
    return cast(Tensor, result.to(dtype))


def _check(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """The checks that cost nothing. The operators repeat them and check everything else."""
    tensors = {
        "value": (value, 4, "(B, S, M, D)"),
        "sampling_locations": (sampling_locations, 6, "(B, Q, M, L, P, 2)"),
        "attention_weights": (attention_weights, 5, "(B, Q, M, L, P)"),
    }
    for name, (tensor, dimensions, meaning) in tensors.items():
        if tensor.dim() != dimensions:
            raise ValueError(
                f"ms_deform_attn: {name} must have shape {meaning}, found {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point():
            raise TypeError(
                f"ms_deform_attn: {name} must hold floating-point numbers, found {tensor.dtype}"
            )
        if tensor.device != value.device:
            raise ValueError(
                f"ms_deform_attn: {name} is on {tensor.device}, value is on {value.device}"
            )
    batch, tokens, heads, _ = value.shape
    _, queries, _, _, points, _ = sampling_locations.shape
    expected = (batch, queries, heads, len(spatial_shapes), points, 2)
    if sampling_locations.shape != expected:
        raise ValueError(
            f"ms_deform_attn: sampling_locations must have shape (B, Q, M, L, P, 2) = {expected} "
            f"to fit value and spatial_shapes, found {tuple(sampling_locations.shape)}"
        )
    if attention_weights.shape != expected[:-1]:
        raise ValueError(
            f"ms_deform_attn: attention_weights must have shape (B, Q, M, L, P) = {expected[:-1]}, "
            f"found {tuple(attention_weights.shape)}"
        )
    total = sum(height * width for height, width in spatial_shapes)
    if total != tokens:
        raise ValueError(
            f"ms_deform_attn: spatial_shapes {[tuple(shape) for shape in spatial_shapes]} sum to "
            f"{total} tokens, value has S = {tokens}"
        )


# Shapes without values, from which torch.compile and torch.export infer the rest of the graph.
def _fake(
    value: Tensor, spatial_shapes: list[int], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    check_one_device(
        "ms_deform_attn",
        value=value,
        sampling_locations=sampling_locations,
        attention_weights=attention_weights,
    )
    batch, _, heads, channels = value.shape
    return value.new_empty((batch, sampling_locations.shape[1], heads * channels))


def _fake_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    check_one_device(
        "ms_deform_attn_backward",
        value=value,
        sampling_locations=sampling_locations,
        attention_weights=attention_weights,
        grad_output=grad_output,
    )
    return (
        torch.empty_like(value),
        torch.empty_like(sampling_locations),
        torch.empty_like(attention_weights),
    )


def _setup_context(
    ctx: Any, inputs: tuple[Tensor, list[int], Tensor, Tensor], output: Tensor
) -> None:
    # The samples are not kept: the backward kernel reads `value` again, since L * P samples per
    # query would be the largest tensors of the network.
    value, spatial_shapes, sampling_locations, attention_weights = inputs
    ctx.save_for_backward(value, sampling_locations, attention_weights)
    ctx.spatial_shapes = spatial_shapes


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, sampling_locations, attention_weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.dino.ms_deform_attn_backward(
        grad_output.contiguous(), value, ctx.spatial_shapes, sampling_locations, attention_weights
    )
    # None stands for the shapes, which are integers.
    return grad_value, None, grad_locations, grad_weights


# Without the library the operators do not exist, and nothing may be registered for them.
if EXTENSION.devices:
    torch.library.register_fake("dino::ms_deform_attn", _fake)
    torch.library.register_fake("dino::ms_deform_attn_backward", _fake_backward)
    torch.library.register_autograd("dino::ms_deform_attn", _backward, setup_context=_setup_context)
    refuse_second_derivative("ms_deform_attn_backward", "ms_deform_attn")
