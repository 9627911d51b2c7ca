"""Mixed query selection (paper 3.4): anchors from the best encoder tokens, learned contents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dino_core.config import ModelConfig
from dino_core.models.attention import Mlp

BASE_SIZE = 0.05  # proposal side on level 0; doubles with each level (ALGORITHM 8)
BORDER = 0.01  # proposals with any value outside (BORDER, 1 - BORDER) are invalid


@dataclass(frozen=True)
class SelectedQueries:
    """The chosen tokens, best first; K = min(num_queries, S).

    Attributes:
        anchors_logit: (B, K, 4) boxes before the sigmoid, detached: the decoder's start.
        logits: (B, K, C) encoder class scores.
        boxes_cxcywh: (B, K, 4) encoder boxes with gradient.
        token_indices: (B, K) int64.
    """

    anchors_logit: Tensor
    logits: Tensor
    boxes_cxcywh: Tensor
    token_indices: Tensor


class QuerySelection(nn.Module):
    """Scores every encoder token and turns the best into decoder queries."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.num_queries = config.num_queries
        self.enc_output = nn.Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        self.class_embed = nn.Linear(dim, config.num_classes)
        self.bbox_embed = Mlp(dim, dim, 4, 3)

    def forward(
        self,
        memory: Tensor,
        padding_mask: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        level_masks: Sequence[Tensor],
        forced_tokens: Tensor | None = None,
    ) -> SelectedQueries:
        """Choose the tokens with the highest class score.

        Args:
            memory: (B, S, hidden) encoder output.
            padding_mask: (B, S) bool.
            spatial_shapes: (H, W) of each level.
            level_masks: L masks (B, H_l, W_l) bool.
            forced_tokens: (B, K) int64 take these instead; near-ties swap with thread counts.
        """
        proposals = anchor_proposals(level_masks)  # (B, S, 4) logit, +inf where invalid
        unusable = padding_mask | proposals[..., :1].isinf().squeeze(-1)
        # Zeroed BEFORE the projection: such tokens become norm(bias), and may still be chosen
        # where better ones are few (ALGORITHM 8, 9).
        tokens = self.enc_output_norm(
            self.enc_output(memory.masked_fill(unusable[..., None], 0.0))
        ).float()
        scores = self.class_embed(tokens).float()  # (B, S, C)
        if forced_tokens is None:
            count = min(self.num_queries, memory.shape[1])
            chosen = scores.amax(dim=-1).topk(count, dim=1).indices
        else:
            chosen = forced_tokens
        picked = chosen[..., None]
        with torch.autocast(tokens.device.type, enabled=False):
            deltas = self.bbox_embed(tokens.gather(1, picked.expand(-1, -1, tokens.shape[-1])))
        boxes_logit = deltas + proposals.gather(1, picked.expand(-1, -1, 4))
        return SelectedQueries(
            anchors_logit=boxes_logit.detach(),
            logits=scores.gather(1, picked.expand(-1, -1, scores.shape[-1])),
            boxes_cxcywh=boxes_logit.sigmoid(),
            token_indices=chosen,
        )


def anchor_proposals(level_masks: Sequence[Tensor]) -> Tensor:
    """One square box a token, centred on it, relative to the valid area (ALGORITHM 8).

    Args:
        level_masks: L masks (B, H_l, W_l) bool, True = padding.

    Returns: (B, S, 4) cxcywh before the sigmoid; +inf where padded or near the border.
    """
    per_level = []
    for level, mask in enumerate(level_masks):
        batch, height, width = mask.shape
        valid_h = (~mask[:, :, 0]).sum(dim=1).to(torch.float32)
        valid_w = (~mask[:, 0, :]).sum(dim=1).to(torch.float32)
        y = torch.arange(height, device=mask.device, dtype=torch.float32) + 0.5
        x = torch.arange(width, device=mask.device, dtype=torch.float32) + 0.5
        cy = (y[None, :, None] / valid_h[:, None, None]).expand(batch, height, width)
        cx = (x[None, None, :] / valid_w[:, None, None]).expand(batch, height, width)
        size = torch.full_like(cx, BASE_SIZE * 2.0**level)
        boxes = torch.stack([cx, cy, size, size], dim=-1)  # (B, H, W, 4)
        valid = ((boxes > BORDER) & (boxes < 1 - BORDER)).all(dim=-1) & ~mask
        logit = torch.log(boxes / (1 - boxes))
        per_level.append(logit.masked_fill(~valid[..., None], float("inf")).flatten(1, 2))
    return torch.cat(per_level, dim=1)
