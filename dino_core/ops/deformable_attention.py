"""Deformable attention from what a layer computes: references, offsets and logits.

One compiled operator goes from these to the result and never stores locations and weights. Where it
cannot run, PyTorch computes them for `ms_deform_attn`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from dino_core.ops._extension import EXTENSION
from dino_core.ops._registration import check_one_device, refuse_second_derivative
from dino_core.ops.backend import choose_backend
from dino_core.ops.ms_deform_attn import ms_deform_attn


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    references: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Attend to samples of every level around each query's reference.

    Coordinates and the softmax are computed in float32 (float64 with a float64 `value`), whatever
    the dtype of offsets and logits.

    Args:
        value: (B, S, M, D), the tokens of all levels, each level row by row.
        spatial_shapes: (height, width) of each level; their products sum to S.
        references: (B, Q, L, 2) points xy or (B, Q, L, 4) boxes cxcywh, in [0, 1] of the level.
        sampling_offsets: (B, Q, M, L, P, 2), xy. Around a point the unit is a pixel of the level,
            around a box 0.5 / P of its width and height (as in Deformable DETR).
        attention_logits: (B, Q, M, L, P), before the softmax over levels and points.

    Returns: (B, Q, M * D) in the dtype of `value`.

    Raises:
        ValueError: Shapes or devices do not fit together.
        RuntimeError: The compiled operator found the same, or a second derivative is asked of it.
    """
    # The kernel has no gradient for references, which the decoder detaches, and no float16 on CPUs.
    fused = (
        value.dtype == sampling_offsets.dtype == attention_logits.dtype
        and not (value.dtype == torch.float16 and value.device.type == "cpu")
        and not references.requires_grad
        and choose_backend(value) == "compiled"
    )
    if fused:
        precise = torch.float64 if value.dtype == torch.float64 else torch.float32
        result = torch.ops.dino.deformable_attention(
            value.contiguous(),
            [size for shape in spatial_shapes for size in shape],
            references.to(precise).contiguous(),
            sampling_offsets.contiguous(),
            attention_logits.contiguous(),
        )
        return cast(Tensor, result)
    # The softmax runs over levels and points together: a query divides its attention among all L *
    # P samples of a head.
    locations = sampling_locations(spatial_shapes, references, sampling_offsets)
    weights = attention_logits.to(locations.dtype).flatten(-2).softmax(-1)
    return ms_deform_attn(value, spatial_shapes, locations, weights.view(attention_logits.shape))


def sampling_locations(
    spatial_shapes: Sequence[tuple[int, int]], references: Tensor, sampling_offsets: Tensor
) -> Tensor:
    """The sampling points: (B, Q, M, L, P, 2) xy in [0, 1] of the level, at least float32.

    Args:
        spatial_shapes: (height, width) of each level.
        references: (B, Q, L, 2) points or (B, Q, L, 4) boxes, as in `deformable_attention`.
        sampling_offsets: (B, Q, M, L, P, 2), as in `deformable_attention`.
    """
    precise = torch.float64 if sampling_offsets.dtype == torch.float64 else torch.float32
    offsets, references = sampling_offsets.to(precise), references.to(precise)
    centers = references[:, :, None, :, None, :2]  # (B, Q, 1, L, 1, 2)
    if references.shape[-1] == 2:
        # Shapes are (height, width), offsets are (x, y).
        size_wh = torch.tensor(
            [(w, h) for h, w in spatial_shapes], dtype=precise, device=offsets.device
        )
        return torch.addcdiv(centers, offsets, size_wh[None, None, None, :, None, :])
    # An offset of P reaches the edge of the box: P * 0.5 / P of its side, measured from the center.
    step = references[:, :, None, :, None, 2:] * (0.5 / offsets.shape[-2])  # (B, Q, 1, L, 1, 2)
    return torch.addcmul(centers, offsets, step)


def _fake(
    value: Tensor, spatial_shapes: list[int], references: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    check_one_device(
        "deformable_attention",
        value=value,
        references=references,
        sampling_offsets=offsets,
        attention_logits=logits,
    )
    batch, _, heads, channels = value.shape
    return value.new_empty((batch, offsets.shape[1], heads * channels))


def _fake_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: list[int],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    check_one_device(
        "deformable_attention_backward",
        value=value,
        references=references,
        sampling_offsets=offsets,
        attention_logits=logits,
        grad_output=grad_output,
    )
    return torch.empty_like(value), torch.empty_like(offsets), torch.empty_like(logits)


def _setup_context(
    ctx: Any, inputs: tuple[Tensor, list[int], Tensor, Tensor, Tensor], output: Tensor
) -> None:
    # Locations and weights are computed again in the backward kernel. Only its inputs are kept.
    value, ctx.spatial_shapes, *rest = inputs
    ctx.save_for_backward(value, *rest)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, Tensor, Tensor]:
    if ctx.needs_input_grad[2]:  # never from `deformable_attention`, which composes such calls
        raise RuntimeError(
            "deformable_attention: the compiled operator has no gradient of references; detach "
            "them, or call dino_core.ops.deformable_attention.deformable_attention instead"
        )
    value, *rest = ctx.saved_tensors
    grad_value, grad_offsets, grad_logits = torch.ops.dino.deformable_attention_backward(
        grad_output.contiguous(), value, ctx.spatial_shapes, *rest
    )
    # References have no gradient here; a call that needs one takes the composed path above.
    return grad_value, None, None, grad_offsets, grad_logits


if EXTENSION.devices:
    torch.library.register_fake("dino::deformable_attention", _fake)
    torch.library.register_fake("dino::deformable_attention_backward", _fake_backward)
    torch.library.register_autograd(
        "dino::deformable_attention", _backward, setup_context=_setup_context
    )
    refuse_second_derivative("deformable_attention_backward", "deformable_attention")
