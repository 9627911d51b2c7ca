"""DINO's two kinds of attention: multi-scale deformable (arXiv 2010.04159) and self-attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from dino_core.ops.deformable_attention import deformable_attention
from dino_core.ops.linear import Linear


class MultiScaleDeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, section 4.1).

    In each head a query samples `num_points` positions of every level around its reference, and
    predicts both the offsets of these positions and their weights.
    """

    def __init__(self, hidden_dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        # An offset and a weight for each head, level and point.
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = Linear(hidden_dim, samples * 2)
        self.attention_weights = Linear(hidden_dim, samples)
        self.value_proj = Linear(hidden_dim, hidden_dim)
        self.output_proj = Linear(hidden_dim, hidden_dim)

    def reset_parameters(self) -> None:
        """Initialize: head h looks in direction 2 pi h / M, point p at a distance of p + 1 pixels.

        All points have the same weight at first (Deformable DETR, A.4).
        """
        # With zero weights the biases alone decide at first: every query looks at the same pattern
        # of points with equal weights, and learns from there how to depend on its content.
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.attention_weights.bias)
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        # Divided by the larger coordinate, so that the directions lie on a square around the query.
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        grid = direction[:, None, None, :] * distance[None, None, :, None]  # (M, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(grid.expand(-1, self.num_levels, -1, -1).flatten())
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def value(self, memory: Tensor, padding_mask: Tensor | None) -> Tensor:
        """The projected tokens, from which `forward` samples.

        Args:
            memory: (B, S, hidden).
            padding_mask: (B, S) bool, True = padding. Padded tokens become zero, which has to be
                done after the projection and its bias. None if there is no padding.

        Returns: (B, S, M, D).
        """
        value: Tensor = self.value_proj(memory)
        if padding_mask is not None:
            # Zeros before the projection would not do: its bias would turn them into a constant
            # that every sample near the border mixes in.
            value = value.masked_fill(padding_mask[..., None], 0.0)
        return value.view(*memory.shape[:2], self.num_heads, -1)  # (B, S, M, D)

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Sample `value` around `references`.

        Args:
            query: (B, Q, hidden).
            references: (B, Q, L, 2) points or (B, Q, L, 4) boxes cxcywh, in [0, 1] of each padded
                level.
            value: (B, S, M, D) as `value` returns it.
            spatial_shapes: (H, W) of each level.

        Returns: (B, Q, hidden).
        """
        batch, num_queries, _ = query.shape
        shape = (batch, num_queries, self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).view(*shape, 2)  # (B, Q, M, L, P, 2)
        logits = self.attention_weights(query).view(shape)  # (B, Q, M, L, P)
        sampled = deformable_attention(value, spatial_shapes, references, offsets, logits)
        # Under autocast the samples may come in another dtype than the layers around them.
        out: Tensor = self.output_proj(sampled.to(offsets.dtype))
        return out


class SelfAttention(nn.Module):
    """Multi-head attention among queries, with the parameters of `nn.MultiheadAttention`."""

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        # One tensor for queries, keys and values, in this order, because the published files have
        # it so.
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_dim, hidden_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_dim))
        self.out_proj = Linear(hidden_dim, hidden_dim)

    def forward(self, x: Tensor, position: Tensor, blocked: Tensor | None) -> Tensor:
        """Attend with queries and keys `x + position` and values `x`.

        Args:
            x: (B, Q, hidden).
            position: (B, Q, hidden).
            blocked: (Q, Q) bool, True = the row may not attend to the column. None blocks nothing.

        Returns: (B, Q, hidden).
        """
        batch, num_queries, hidden = x.shape
        weight, bias = self.in_proj_weight, self.in_proj_bias
        # Queries and keys have the same input, so one product gives both.
        query_key = functional.linear(x + position, weight[: 2 * hidden], bias[: 2 * hidden])
        value = functional.linear(x, weight[2 * hidden :], bias[2 * hidden :])
        parts = (query_key[..., :hidden], query_key[..., hidden:], value)
        # (B, Q, hidden) -> (B, M, Q, D).
        q, k, v = (p.view(batch, num_queries, self.num_heads, -1).transpose(1, 2) for p in parts)
        heads = _attend(q, k, v, blocked)
        out: Tensor = self.out_proj(heads.transpose(1, 2).reshape(batch, num_queries, hidden))
        return out


def _attend(q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None) -> Tensor:
    """Scaled dot-product attention over (B, M, Q, D), with `blocked` as in `SelfAttention`."""
    if not (q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16):
        # PyTorch's function has the opposite meaning of True: the row may attend to the column.
        mask = None if blocked is None else ~blocked
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # The backward pass of PyTorch's fused CPU kernel is slow in bf16: 70 ms instead of 45 ms for
    # 1100 queries, batch 2, 8 heads of 32 (2 cores, torch 2.15).
    # The bias goes into the same kernel as the product, so that no further pass over the scores is
    # needed.
    bias = q.new_zeros(q.shape[2], k.shape[2])
    if blocked is not None:
        bias = bias.masked_fill_(blocked, -torch.inf)
    with torch.autocast("cpu", enabled=False):
        flat = [t.flatten(0, 1) for t in (q, k.transpose(-1, -2), v)]  # (B * M, ...)
        scores = torch.baddbmm(bias, flat[0], flat[1], alpha=q.shape[-1] ** -0.5)
        mixed: Tensor = scores.softmax(dim=-1) @ flat[2]
    return mixed.view(q.shape)


class Mlp(nn.Module):
    """Linear layers with ReLU between them: (..., in_dim) -> (..., out_dim)."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        sizes = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out
