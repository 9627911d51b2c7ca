"""The deformable encoder: post-norm layers over the tokens of all levels (ALGORITHM 6 and 7)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dino_core.config import ModelConfig
from dino_core.models.attention import MultiScaleDeformableAttention
from dino_core.models.feed_forward import feed_forward
from dino_core.models.geometry import Geometry
from dino_core.models.recompute import recomputed
from dino_core.ops.linear import Linear


class EncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each followed by its norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.self_attn = MultiScaleDeformableAttention(
            dim, config.num_heads, config.num_levels, config.num_points
        )
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = Linear(dim, config.ffn_dim)
        self.linear2 = Linear(config.ffn_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.gradient_checkpointing = False

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        references: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None,
    ) -> Tensor:
        """Update the tokens.

        Args:
            tokens: (B, S, hidden).
            positions: (B, S, hidden) their positional encoding.
            references: (B, S, L, 2) their own positions in each level.
            spatial_shapes: (H, W) of each level.
            padding_mask: (B, S) bool, True = padding; None if there is no padding.

        Returns: (B, S, hidden).
        """
        recompute = self.gradient_checkpointing
        args = (tokens, positions, references, spatial_shapes, padding_mask)
        # Post-norm as in the original transformer: the norm follows the residual sum. Dropout is
        # left out because the published recipe sets it to 0. Only the attention is wrapped here,
        # since the feed-forward network recomputes its own hidden activations.
        tokens = self.norm1(tokens + recomputed(self._attend, *args, enabled=recompute))
        hidden = feed_forward(tokens, self.linear1, self.linear2, recompute)
        out: Tensor = self.norm2(tokens + hidden)
        return out

    def _attend(
        self,
        tokens: Tensor,
        positions: Tensor,
        references: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None,
    ) -> Tensor:
        # Positions influence where a token looks and with what weight, but are not part of what is
        # read (ALGORITHM 6).
        value = self.self_attn.value(tokens, padding_mask)
        out: Tensor = self.self_attn(tokens + positions, references, value, spatial_shapes)
        return out


class Encoder(nn.Module):
    """A stack of `EncoderLayer`s."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        geometry: Geometry,
    ) -> Tensor:
        """Encode all levels together.

        Args:
            tokens: (B, S, hidden).
            positions: (B, S, hidden) sine encoding plus level embedding.
            geometry: Shapes, positions and masks of the batch.

        Returns: (B, S, hidden).
        """
        shapes, mask = geometry.spatial_shapes, geometry.token_mask
        # The sum of sine encoding and level embedding is added again in each layer, to queries
        # only.
        for layer in self.layers:
            tokens = layer(tokens, positions, geometry.references, shapes, mask)
        return tokens
