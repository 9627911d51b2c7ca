"""Mixed query selection (paper 3.4): anchors from the best encoder tokens, learned contents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dino_core.config import ModelConfig
from dino_core.models.attention import Mlp
from dino_core.models.geometry import Geometry
from dino_core.ops.linear import Linear


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
        self.enc_output = Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        self.class_embed = Linear(dim, config.num_classes)
        self.bbox_embed = Mlp(dim, dim, 4, 3)

    def forward(
        self,
        memory: Tensor,
        geometry: Geometry,
        forced_tokens: Tensor | None = None,
    ) -> SelectedQueries:
        """Choose the tokens with the highest class score.

        Args:
            memory: (B, S, hidden) encoder output.
            geometry: Of the batch.
            forced_tokens: (B, K) int64 take these instead; near-ties swap with thread counts.
        """
        proposals = geometry.proposals
        unusable = proposals[..., 0].isinf()  # padded ones are too
        # Zeroed BEFORE the projection: such tokens become norm(bias), and may still be chosen
        # where better ones are few (ALGORITHM 8, 9).
        usable = memory.to(self.enc_output.weight.dtype).masked_fill(unusable[..., None], 0.0)
        # Without autocast: rounded scores tie, and ties choose by position.
        with torch.autocast(memory.device.type, enabled=False):
            tokens = self.enc_output_norm(self.enc_output(usable))
            scores = self.class_embed(tokens)  # (B, S, C)
            if forced_tokens is None:
                count = min(self.num_queries, memory.shape[1])
                chosen = scores.amax(dim=-1).topk(count, dim=1).indices
            else:
                chosen = forced_tokens
            picked = chosen[..., None]
            deltas = self.bbox_embed(tokens.gather(1, picked.expand(-1, -1, tokens.shape[-1])))
        boxes_logit = deltas + proposals.gather(1, picked.expand(-1, -1, 4))
        return SelectedQueries(
            anchors_logit=boxes_logit.detach(),
            logits=scores.gather(1, picked.expand(-1, -1, scores.shape[-1])),
            boxes_cxcywh=boxes_logit.sigmoid(),
            token_indices=chosen,
        )
