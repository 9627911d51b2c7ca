"""Sine encodings of image positions (DETR) and of query boxes (DAB-DETR, arXiv 2201.12329)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# As in DAB-DETR and the original transformer. Image positions have a temperature of their own, 20
# in the official configuration.
QUERY_TEMPERATURE = 10000.0


def _sine(positions: Tensor, num_feats: int, temperature: float) -> Tensor:
    """(...) angles -> (..., num_feats): sines on even channels, cosines on odd ones."""
    channel = torch.arange(num_feats, dtype=torch.float32, device=positions.device)
    # Channels 2i and 2i + 1 share one period: the first is a sine and the second a cosine.
    period = temperature ** (2 * torch.div(channel, 2, rounding_mode="floor") / num_feats)
    angles = positions[..., None] / period
    # Stacking before flattening interleaves the channels as the published weights expect, instead
    # of putting all sines before all cosines.
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


def image_position_encoding(
    padding_mask: Tensor, hidden_dim: int, temperature: float, offset: float
) -> Tensor:
    """Encode each pixel's position among the valid ones, normalized to 2 pi (ALGORITHM 4).

    The valid pixels are a rectangle at the top left, so that one row and one column determine the
    encoding. What padded pixels get is never used.

    Args:
        padding_mask: (B, H, W) bool, True = padding, at the bottom and right.
        hidden_dim: Channels of the result; half for y, half for x.
        temperature: 20 in the official model.
        offset: Added to the 1-based pixel index; 0 in the official model, -0.5 in detrex.

    Returns: (B, H, W, hidden_dim) float32.
    """
    batch, height, width = padding_mask.shape
    half = hidden_dim // 2
    # Only one line of each axis is encoded and then expanded, instead of all H * W pixels.
    y, x = (  # each (B, H or W, half)
        _sine(_normalized(~line, offset), half, temperature)
        for line in (padding_mask[:, :, 0], padding_mask[:, 0, :])
    )
    whole = (batch, height, width, half)
    # y comes before x, here and in the encoding of queries.
    return torch.cat([y[:, :, None].expand(whole), x[:, None].expand(whole)], dim=-1)


def _normalized(valid: Tensor, offset: float) -> Tensor:
    """(B, N) bool -> (B, N) angles: the number of valid pixels up to here, as a share of 2 pi."""
    count = valid.to(torch.float32).cumsum(dim=1)
    # The last count is the number of valid pixels, since padded ones add nothing. 1e-6 is the
    # official eps; it also protects a line that is padding only.
    return (count + offset) / (count[:, -1:] + 1e-6) * (2 * math.pi)


def query_position_encoding(boxes_cxcywh: Tensor, hidden_dim: int) -> Tensor:
    """Encode query boxes for the decoder's position MLP (ALGORITHM 13).

    Args:
        boxes_cxcywh: (B, Q, 4) in [0, 1].
        hidden_dim: Twice the number of channels per coordinate.

    Returns: (B, Q, 2 * hidden_dim), coordinates in the order y, x, w, h.
    """
    # From x, y, w, h to y, x, w, h, the order in which the position MLP was trained.
    coordinates = boxes_cxcywh[..., [1, 0, 2, 3]] * (2 * math.pi)
    return _sine(coordinates, hidden_dim // 2, QUERY_TEMPERATURE).flatten(-2)
