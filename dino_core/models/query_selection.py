"""Mixed query selection (paper 3.4): the best encoder tokens give anchors, contents are learned."""

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
    """The K = min(num_queries, S) selected tokens, best first.

    Attributes:
        anchors_logit: (B, K, 4) boxes before the sigmoid, detached, where the decoder starts.
        logits: (B, K, C) class logits of the encoder.
        boxes_cxcywh: (B, K, 4) boxes of the encoder, with gradient.
        token_indices: (B, K) int64.
    """

    anchors_logit: Tensor
    logits: Tensor
    boxes_cxcywh: Tensor
    token_indices: Tensor


class QuerySelection(nn.Module):
    """Scores every encoder token, and selects the best for the decoder's queries."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.num_queries = config.num_queries
        # These heads are copies of the decoder's in shape only: they are trained by the encoder's
        # own loss and share no weights with the decoder (ALGORITHM 10).
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
        """Select the tokens with the highest class score.

        Args:
            memory: (B, S, hidden) encoder output.
            geometry: Shapes, positions and masks of the batch.
            forced_tokens: (B, K) int64 tokens to select instead, for comparisons: the order of
                near-ties depends on the number of threads.
        """
        proposals = geometry.proposals
        unusable = proposals[..., 0].isinf()  # near the border or padded
        # Zeroed before the projection, as in the official code: such tokens become norm(bias), and
        # may still be selected if there are few better ones (ALGORITHM 8 and 9).
        usable = memory.to(self.enc_output.weight.dtype).masked_fill(unusable[..., None], 0.0)
        # Without autocast, since rounded scores would tie, and ties are decided by position.
        with torch.autocast(memory.device.type, enabled=False):
            tokens = self.enc_output_norm(self.enc_output(usable))
            scores = self.class_embed(tokens)  # (B, S, C)
            if forced_tokens is None:
                # An image under about 200 pixels has fewer tokens than queries. The official code
                # fails there.
                count = min(self.num_queries, memory.shape[1])
                # The best score over all classes, so one token gives one query, whatever number of
                # classes it fits. Scores of unusable tokens take part unmasked (ALGORITHM 9).
                chosen = scores.amax(dim=-1).topk(count, dim=1).indices
            else:
                chosen = forced_tokens
            picked = chosen[..., None]  # (B, K, 1)
            # Only the K chosen tokens need boxes. The official code computes them for all S tokens
            # and picks afterwards, with the same result.
            deltas = self.bbox_embed(tokens.gather(1, picked.expand(-1, -1, tokens.shape[-1])))
        # An unusable token has the proposal +inf, and its sigmoid is the box (1, 1, 1, 1) of
        # ALGORITHM 9.
        boxes_logit = deltas + proposals.gather(1, picked.expand(-1, -1, 4))
        return SelectedQueries(
            # The decoder's loss must not reach the encoder through the anchors, or it would train
            # the proposals twice (ALGORITHM 11).
            anchors_logit=boxes_logit.detach(),
            logits=scores.gather(1, picked.expand(-1, -1, scores.shape[-1])),
            boxes_cxcywh=boxes_logit.sigmoid(),
            token_indices=chosen,
        )
