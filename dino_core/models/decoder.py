"""The decoder: boxes refined layer by layer, predictions that look forward twice (paper 3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dino_core.boxes import inverse_sigmoid
from dino_core.config import ModelConfig
from dino_core.models.attention import Mlp, MultiScaleDeformableAttention, SelfAttention
from dino_core.models.feed_forward import feed_forward
from dino_core.models.geometry import Geometry
from dino_core.models.position import query_position_encoding
from dino_core.models.recompute import recomputed
from dino_core.ops.linear import Linear


@dataclass(frozen=True)
class DecoderOutput:
    """Predictions of N decoder layers, those of the last layer last.

    Attributes:
        logits: (N, B, Q, C) float32.
        boxes_cxcywh: (N, B, Q, 4) float32.
    """

    logits: Tensor
    boxes_cxcywh: Tensor


def _query_precision(x: Tensor, training: bool) -> AbstractContextManager[None]:
    """The precision of operations on queries: autocast's in training, float32 in prediction.

    They are cheap compared with operations on tokens, and affect the boxes most: in bfloat16 boxes
    move by half a pixel.
    """
    kind = x.device.type
    if training or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention and a feed-forward network, each with its norm.

    The norms have the official numbers: norm2 follows the self-attention, norm1 the
    cross-attention, norm3 the feed-forward network.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.cross_attn = MultiScaleDeformableAttention(
            dim, config.num_heads, config.num_levels, config.num_points
        )
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = SelfAttention(dim, config.num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = Linear(dim, config.ffn_dim)
        self.linear2 = Linear(config.ffn_dim, dim)
        self.norm3 = nn.LayerNorm(dim)
        self.gradient_checkpointing = False

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        references: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None,
        blocked: Tensor | None,
    ) -> Tensor:
        """Update the queries.

        Args:
            x: (B, Q, hidden) contents of the queries.
            position: (B, Q, hidden) their positional encoding.
            references: (B, Q, L, 4) their boxes cxcywh, in [0, 1] of each padded level.
            memory: (B, S, hidden) the encoder's tokens.
            spatial_shapes: (H, W) of each level.
            padding_mask: (B, S) bool, True = padding; None if there is no padding.
            blocked: (Q, Q) bool, True = the row may not attend to the column, or None.

        Returns: (B, Q, hidden).
        """
        recompute = self.gradient_checkpointing
        args = (x, position, references, memory, spatial_shapes, padding_mask, blocked)
        x = recomputed(self._attend, *args, enabled=recompute)
        with _query_precision(x, self.training):
            out: Tensor = self.norm3(x + feed_forward(x, self.linear1, self.linear2, recompute))
        return out

    def _attend(
        self,
        x: Tensor,
        position: Tensor,
        references: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None,
        blocked: Tensor | None,
    ) -> Tensor:
        # The values are computed outside of the raised precision on purpose: there are many more
        # tokens than queries, so that this projection is a large share of the layer's work.
        value = self.cross_attn.value(memory, padding_mask)
        with _query_precision(x, self.training):
            x = self.norm2(x + self.self_attn(x, position, blocked))
            out: Tensor = self.norm1(
                x + self.cross_attn(x + position, references, value, spatial_shapes)
            )
        return out


class Decoder(nn.Module):
    """The layers, a norm that all predictions share, the position MLP, class and box heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, layers = config.hidden_dim, config.decoder_layers
        # The official code registers one head under every layer's name, so that its files have six
        # equal copies. Here a shared head is stored once (ALGORITHM 17).
        heads = 1 if config.tied_heads else layers
        self.box_eps = config.box_eps
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        # The encoding of a box has dim / 2 channels for each of its four coordinates, 2 * dim in
        # all.
        self.ref_point_head = Mlp(2 * dim, dim, dim, 2)
        self.class_embed = nn.ModuleList(Linear(dim, config.num_classes) for _ in range(heads))
        self.bbox_embed = nn.ModuleList(Mlp(dim, dim, 4, 3) for _ in range(heads))

    def forward(
        self,
        content: Tensor,
        anchors_logit: Tensor,
        memory: Tensor,
        geometry: Geometry,
        blocked: Tensor | None,
        all_layers: bool,
    ) -> DecoderOutput:
        """Refine the queries' boxes.

        Args:
            content: (B, Q, hidden).
            anchors_logit: (B, Q, 4) initial boxes before the sigmoid.
            memory: (B, S, hidden).
            geometry: Shapes, positions and masks of the batch.
            blocked: (Q, Q) bool or None.
            all_layers: Predict from every layer (training) or only from the last.
        """
        # Look forward twice (paper 3.5): a layer samples around the boxes of the layer before it
        # without their gradient, but predicts relative to them with their gradient, so that its
        # loss also trains that layer. Deformable DETR detaches them in both places.
        base = anchors_logit.sigmoid()  # (B, Q, 4)
        x, dim, last = content, content.shape[-1], len(self.layers) - 1
        # Boxes are relative to the image, and become relative to each padded level by this factor.
        scale = geometry.valid_ratios.repeat(1, 1, 2)[:, None]  # (B, 1, L, 4)
        shapes, mask = geometry.spatial_shapes, geometry.token_mask
        logits, boxes = [], []
        for index, layer in enumerate(self.layers):
            # `base` keeps its gradient for the prediction below; everything that samples uses
            # `reference`.
            reference = base.detach()
            scaled = reference[:, :, None] * scale  # (B, Q, L, 4)
            with _query_precision(x, self.training):
                # The encoding uses the box relative to level 0 with its padding, as in the official
                # code. In an unpadded image this is the box itself (ALGORITHM 13).
                position = self.ref_point_head(query_position_encoding(scaled[:, :, 0], dim))
            x = layer(x, position, scaled, memory, shapes, mask, blocked)
            if all_layers or index == last:
                # A layer's prediction passes through the shared norm, while the box for the next
                # layer is made from `x` without it. The published weights depend on this asymmetry
                # (ALGORITHM 15, 16).
                normed = self.norm(x)
                with _query_precision(x, self.training):
                    logits.append(self._head(self.class_embed, index)(normed).float())
                boxes.append(self._moved(index, normed, base, self.box_eps))
            # Nothing would read the refinement of the last layer.
            if index < last:
                base = self._moved(index, x, reference)
        return DecoderOutput(torch.stack(logits), torch.stack(boxes))  # (N, B, Q, C), (N, B, Q, 4)

    def _head(self, heads: nn.ModuleList, index: int) -> nn.Module:
        return heads[index if len(heads) > 1 else 0]

    def _moved(self, index: int, x: Tensor, boxes_cxcywh: Tensor, eps: float = 1e-3) -> Tensor:
        """Boxes (B, Q, 4) moved by layer `index`'s box head, in float32 even under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            # Between 0.5 and 1 neighboring bfloat16 numbers are 1/256 apart, which is several
            # pixels of an image.
            delta = self._head(self.bbox_embed, index)(x.float())
        # The box is moved in logit space, so that the sum always maps back into [0, 1].
        moved: Tensor = (delta + inverse_sigmoid(boxes_cxcywh, eps)).sigmoid()
        return moved
