"""Sine encodings of image positions (DETR) and of query boxes (DAB-DETR, arXiv 2201.12329)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

QUERY_TEMPERATURE = 10000.0


def _sine(positions: Tensor, num_feats: int, temperature: float) -> Tensor:
    """(...) angles -> (..., num_feats): sine on even, cosine on odd channels, interleaved."""
    channel = torch.arange(num_feats, dtype=torch.float32, device=positions.device)
    period = temperature ** (2 * torch.div(channel, 2, rounding_mode="floor") / num_feats)
    angles = positions[..., None] / period
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


def image_position_encoding(
    padding_mask: Tensor, hidden_dim: int, temperature: float, offset: float
) -> Tensor:
    """Encode each pixel's position among the valid ones, normalised to 2 pi (ALGORITHM 4).

    Args:
        padding_mask: (B, H, W) bool, True = padding.
        hidden_dim: Channels of the result; half for y, half for x.
        temperature: 20 in the official model.
        offset: Added to the 1-based pixel count; 0 in the official model, -0.5 in detrex.

    Returns: (B, H, W, hidden_dim) float32.
    """
    valid = (~padding_mask).to(torch.float32)
    rows, columns = valid.cumsum(dim=1), valid.cumsum(dim=2)
    y = (rows + offset) / (rows[:, -1:, :] + 1e-6) * (2 * math.pi)
    x = (columns + offset) / (columns[:, :, -1:] + 1e-6) * (2 * math.pi)
    half = hidden_dim // 2
    return torch.cat([_sine(y, half, temperature), _sine(x, half, temperature)], dim=-1)


def query_position_encoding(boxes_cxcywh: Tensor, hidden_dim: int) -> Tensor:
    """Encode query boxes for the decoder's position MLP (ALGORITHM 13).

    Args:
        boxes_cxcywh: (B, Q, 4) in [0, 1].
        hidden_dim: Twice the channels a coordinate gets.

    Returns: (B, Q, 2 * hidden_dim), coordinates in the order y, x, w, h.
    """
    coordinates = boxes_cxcywh[..., [1, 0, 2, 3]] * (2 * math.pi)
    return _sine(coordinates, hidden_dim // 2, QUERY_TEMPERATURE).flatten(-2)
