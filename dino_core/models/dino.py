"""The DINO detector (arXiv 2203.03605), from images to class logits and normalized boxes.

It differs from the official code in two respects, neither of which changes a number: images with
fewer tokens than queries are accepted, and the code names no device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dino_core.config import ModelConfig
from dino_core.models.attention import MultiScaleDeformableAttention
from dino_core.models.backbones.backbone import Backbone
from dino_core.models.decoder import Decoder, DecoderLayer, DecoderOutput
from dino_core.models.denoising import (
    DenoisingLayout,
    NoiseDraws,
    attention_mask,
    denoising_queries,
)
from dino_core.models.encoder import Encoder, EncoderLayer
from dino_core.models.geometry import Geometry
from dino_core.models.neck import Neck
from dino_core.models.query_selection import QuerySelection, SelectedQueries
from dino_core.targets import Target

PRIOR_PROBABILITY = 0.01  # score of each class at initialization (focal loss, arXiv 1708.02002)


@dataclass(frozen=True)
class DenoisingOutput:
    """Predictions for the denoising queries; P = layout.num_queries.

    Attributes:
        logits: (N, B, P, C) of N decoder layers, last layer last.
        boxes_cxcywh: (N, B, P, 4).
        layout: Number of groups and of slots in each.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    layout: DenoisingLayout


@dataclass(frozen=True)
class DinoOutput:
    """What the network predicts.

    Attributes:
        logits: (B, Q, C) class logits of the last decoder layer, float32.
        boxes_cxcywh: (B, Q, 4) in [0, 1], relative to the image without padding.
        layer_logits: (N, B, Q, C) of every decoder layer in training, otherwise of the last one.
        layer_boxes_cxcywh: (N, B, Q, 4) of the same layers.
        encoder: The encoder's proposals.
        denoising: Predictions of the denoising queries; None unless targets were given.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    layer_logits: Tensor
    layer_boxes_cxcywh: Tensor
    encoder: SelectedQueries
    denoising: DenoisingOutput | None


@dataclass(frozen=True)
class _Queries:
    """What enters the decoder: P denoising queries (in training), then Q matching queries.

    Attributes:
        content: (B, P + Q, hidden).
        anchors_logit: (B, P + Q, 4) boxes before the sigmoid.
        blocked: (P + Q, P + Q) bool, True = the row may not attend to the column, or None.
        layout: Order of the denoising queries; None if there are none.
    """

    content: Tensor
    anchors_logit: Tensor
    blocked: Tensor | None
    layout: DenoisingLayout | None


class Dino(nn.Module):
    """Backbone, neck, deformable encoder, mixed query selection, decoder (paper, figure 2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden_dim
        self.backbone = Backbone(config)
        self.neck = Neck(self.backbone.channels, dim, config.num_levels, config.neck_bias)
        self.level_embed = nn.Parameter(torch.empty(config.num_levels, dim))  # (L, hidden)
        self.encoder = Encoder(config)
        self.query_selection = QuerySelection(config)
        self.tgt_embed = nn.Embedding(config.num_queries, dim)
        # One row more than there are classes, as in the official code. No label looks it up, but
        # published files contain it (ALGORITHM 19).
        self.label_enc = nn.Embedding(config.num_classes + 1, dim)
        self.decoder = Decoder(config)
        # A cache and therefore no buffer: it is not saved and does not move with the model.
        self._last_geometry: tuple[Tensor, Geometry] | None = None
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Initialize as ALGORITHM 27 says; on the meta device not at all, as values come later."""
        if self.level_embed.is_meta:
            return
        # The official code intends a normal distribution for tgt_embed, and then overwrites it by
        # this rule. The published weights were trained that way, so it stays in the list (ALGORITHM
        # 27).
        for part in (self.encoder, self.query_selection, self.tgt_embed, self.decoder):
            for parameter in part.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        # After the general rule, which would overwrite the directions of the sampling offsets.
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.reset_parameters()
        self.neck.reset_parameters()
        # Without a prior of 0.01, all Q * C scores would begin at 0.5, and the loss of the
        # background would dominate the first steps (focal loss, section 3.3).
        nn.init.normal_(self.level_embed)
        nn.init.normal_(self.label_enc.weight)
        bias = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
        for head in (*self.decoder.class_embed, self.query_selection.class_embed):
            assert isinstance(head, nn.Linear)
            nn.init.constant_(head.bias, bias)
        # With zeros in the last layer every box starts at its anchor.
        for mlp in (*self.decoder.bbox_embed, self.query_selection.bbox_embed):
            last = mlp.layers[-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute attention and hidden activations in the backward pass, to save memory."""
        self.backbone.set_gradient_checkpointing(enabled)
        for layer in (*self.encoder.layers, *self.decoder.layers):
            assert isinstance(layer, (EncoderLayer, DecoderLayer))
            layer.gradient_checkpointing = enabled

    def forward(
        self,
        images: Tensor,
        padding_mask: Tensor,
        targets: Sequence[Target] | None = None,
        generator: torch.Generator | None = None,
        *,
        noise: NoiseDraws | None = None,
        forced_tokens: Tensor | None = None,
        all_layers: bool | None = None,
        features: Sequence[Tensor] | None = None,
    ) -> DinoOutput:
        """Detect objects.

        Args:
            images: (B, 3, H, W) float32, normalized, zero-padded at the bottom and right.
            padding_mask: (B, H, W) bool, True = padding.
            targets: Ground truth, one per image. They add the denoising queries.
            generator: Source of the denoising noise.
            noise: Denoising noise to use instead of drawing it.
            forced_tokens: (B, Q) int64 encoder tokens to select, for comparisons.
            all_layers: Predict from every decoder layer; by default only in training mode.
            features: The backbone's maps of the images, if they are known; `images` is then unused.
        """
        # Section 3.2: multi-scale features of the backbone, flattened into tokens with positions.
        maps = self.neck(self.backbone(images) if features is None else features)
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)  # (B, S, hidden)
        geometry = self._geometry(padding_mask, [(m.shape[-2], m.shape[-1]) for m in maps])
        # The sine encoding is the same on all levels at the same relative position, so tokens of
        # different levels at one place can only be distinguished by this embedding.
        positions = geometry.positions + self.level_embed[geometry.levels]
        memory = self.encoder(tokens, positions, geometry)

        # Section 3.4, mixed query selection: the encoder's best tokens give the anchors.
        chosen = self.query_selection(memory, geometry, forced_tokens)
        # Section 3.3, contrastive denoising: noised ground truth goes before these queries.
        queries = self._queries(chosen, targets, generator, noise)

        # Section 3.5, look forward twice: every layer refines the boxes of the one before.
        decoded = self.decoder(
            queries.content,
            queries.anchors_logit,
            memory,
            geometry,
            queries.blocked,
            self.training if all_layers is None else all_layers,
        )
        return _output(decoded, queries.layout, chosen)

    def _queries(
        self,
        chosen: SelectedQueries,
        targets: Sequence[Target] | None,
        generator: torch.Generator | None,
        noise: NoiseDraws | None,
    ) -> _Queries:
        """The matching queries, with denoising queries before them if there are targets.

        A matching query has the anchor of a selected token but a learned content (section 3.4).
        """
        batch, count = chosen.logits.shape[:2]  # the count is below Q if there are fewer tokens
        # Query k has content k whatever the image shows: the learned contents are tied to the rank
        # of a token and not to the token itself (ALGORITHM 11).
        content = self.tgt_embed.weight[:count].expand(batch, -1, -1)  # (B, Q, hidden)
        if targets is None:
            return _Queries(content, chosen.anchors_logit, None, None)
        if self.config.dn_number == 0:
            return _Queries(self._touched(content), chosen.anchors_logit, None, None)
        noised = denoising_queries(targets, self.label_enc, self.config, generator, noise)
        return _Queries(
            # The denoising queries come first. The attention mask, `_output` and the layout all
            # count on it.
            content=self._touched(torch.cat([noised.content, content], dim=1)),
            anchors_logit=torch.cat([noised.anchors_logit, chosen.anchors_logit], dim=1),
            blocked=attention_mask(noised.layout, count, content.device),
            layout=noised.layout,
        )

    def _touched(self, content: Tensor) -> Tensor:
        """`content` with the label embedding in its graph.

        DDP needs every parameter in every graph, even where a batch has no boxes to denoise.
        """
        return content + self.label_enc.weight[0, 0] * 0.0

    def _geometry(self, padding_mask: Tensor, spatial_shapes: list[tuple[int, int]]) -> Geometry:
        """The geometry of the batch, reused if the last batch had the same mask.

        Only predictions on a CPU reuse it: training rarely repeats a mask, and on another device
        the comparison of masks would wait for the device.
        """
        on_cpu = padding_mask.device.type == "cpu"
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not on_cpu:
            return Geometry.of(padding_mask, spatial_shapes, self.config)
        last = self._last_geometry
        same = last is not None and last[1].spatial_shapes == spatial_shapes
        if last is None or not same or not torch.equal(last[0], padding_mask):
            geometry = Geometry.of(padding_mask, spatial_shapes, self.config)
            # Without padding there is nothing to mask, which saves a pass over the values in each
            # layer. Looking at the mask costs a GPU a synchronization, hence only here.
            if not padding_mask.any():
                geometry = replace(geometry, token_mask=None)
            # The caller may write the next batch's mask into the same memory, which would make any
            # mask look like the cached one.
            last = self._last_geometry = (padding_mask.clone(), geometry)
        return last[1]


def _output(
    decoded: DecoderOutput, layout: DenoisingLayout | None, chosen: SelectedQueries
) -> DinoOutput:
    """The predictions, those of the denoising queries apart from the others."""
    # The second axis of the stacked predictions is the batch, the third one the P + Q queries.
    split = 0 if layout is None else layout.num_queries
    logits, boxes = decoded.logits[:, :, split:], decoded.boxes_cxcywh[:, :, split:]
    denoising = None
    if layout is not None:
        denoising = DenoisingOutput(
            decoded.logits[:, :, :split], decoded.boxes_cxcywh[:, :, :split], layout
        )
    return DinoOutput(logits[-1], boxes[-1], logits, boxes, chosen, denoising)
