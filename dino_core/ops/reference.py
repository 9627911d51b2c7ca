"""Multi-scale deformable attention (Deformable DETR, section 4.1) in plain PyTorch.

The compiled operators are tested against it, it runs where there are none, and the export to ONNX
traces it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The weighted sum of bilinear samples of every level.

    Samples are taken in the dtype of the locations, so that float16 and bfloat16 values are
    accumulated in float32.

    Args:
        value: (B, S, M, D), the tokens of all levels, each level row by row.
        spatial_shapes: (height, width) of each level; their products sum to S.
        sampling_locations: (B, Q, M, L, P, 2), xy in [0, 1] of the level.
        attention_weights: (B, Q, M, L, P).

    Returns:
        (B, Q, M * D) in the dtype of `value`. A location outside its level contributes zero, as do
        NaN and infinity.
    """
    batch, _, heads, channels = value.shape
    queries, levels, points = (
        sampling_locations.shape[1],
        len(spatial_shapes),
        sampling_locations.shape[4],
    )
    # grid_sample turns infinite and NaN coordinates into NaN samples. They, and all that is far
    # outside, move to -1, which is outside every level and so contributes zero.
    known = (sampling_locations > -1) & (sampling_locations < 2)
    grids = torch.where(known, sampling_locations, -1.0) * 2 - 1  # grid_sample's range
    wide = value.to(sampling_locations.dtype)
    samples = []
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        tokens = wide[:, start : start + height * width].flatten(2)  # (B, H * W, M * D)
        image = tokens.transpose(1, 2).reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B * M, Q, P, 2)
        samples.append(
            F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        )
        start += height * width  # of the next level's tokens
    # One row of weights serves all channels of a head: (B * M, 1, Q, L * P).
    weights = attention_weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    stacked = torch.stack(samples, dim=-2).flatten(-2)  # (B * M, D, Q, L * P)
    summed = (stacked * weights).sum(-1).view(batch, heads * channels, queries)  # (B, M * D, Q)
    return summed.transpose(1, 2).to(value.dtype)  # (B, Q, M * D)
