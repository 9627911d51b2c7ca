"""The DINO detector (arXiv 2203.03605), from images to class logits and normalised boxes.

Differs from the official code only where ALGORITHM's "Do better" list says so: fewer tokens than
queries are accepted, and no device is named.
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
from dino_core.models.decoder import Decoder, DecoderLayer
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

PRIOR_PROBABILITY = 0.01  # of each class at the start (focal loss, arXiv 1708.02002)


@dataclass(frozen=True)
class DenoisingOutput:
    """Predictions for the denoising queries; P = layout.num_queries.

    Attributes:
        logits: (N, B, P, C), one a decoder layer, last layer last.
        boxes_cxcywh: (N, B, P, 4).
        layout: Groups and slots.
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
        layer_logits: (N, B, Q, C) of every decoder layer in training, else of the last one.
        layer_boxes_cxcywh: (N, B, Q, 4).
        encoder: The encoder's own proposals.
        denoising: Present where targets were given.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    layer_logits: Tensor
    layer_boxes_cxcywh: Tensor
    encoder: SelectedQueries
    denoising: DenoisingOutput | None


class Dino(nn.Module):
    """Backbone, neck, deformable encoder, mixed query selection, decoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden_dim
        self.backbone = Backbone(config)
        self.neck = Neck(self.backbone.channels, dim, config.num_levels, config.neck_bias)
        self.level_embed = nn.Parameter(torch.empty(config.num_levels, dim))
        self.encoder = Encoder(config)
        self.query_selection = QuerySelection(config)
        self.tgt_embed = nn.Embedding(config.num_queries, dim)
        self.label_enc = nn.Embedding(config.num_classes + 1, dim)
        self.decoder = Decoder(config)
        self._last_geometry: tuple[Tensor, Geometry] | None = None
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """ALGORITHM 27. On the meta device nothing: the values come from a file."""
        if self.level_embed.is_meta:
            return
        for part in (self.encoder, self.query_selection, self.tgt_embed, self.decoder):
            for parameter in part.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.reset_parameters()
        self.neck.reset_parameters()
        nn.init.normal_(self.level_embed)
        nn.init.normal_(self.label_enc.weight)
        bias = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
        for head in (*self.decoder.class_embed, self.query_selection.class_embed):
            assert isinstance(head, nn.Linear)
            nn.init.constant_(head.bias, bias)
        for mlp in (*self.decoder.bbox_embed, self.query_selection.bbox_embed):
            last = mlp.layers[-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute attention and hidden activations in the backward instead of keeping them."""
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
        """Detect.

        Args:
            images: (B, 3, H, W) float32, normalised, zero-padded at the bottom and right.
            padding_mask: (B, H, W) bool, True = padding.
            targets: Ground truth, one an image: adds the denoising queries.
            generator: Draws the denoising noise.
            noise: Replay these draws.
            forced_tokens: (B, Q) int64 encoder tokens to select, for comparisons.
            all_layers: Predict from every decoder layer; default: in training mode.
            features: The backbone's maps of the images, which are then not looked at.
        """
        if features is None:
            features = self.backbone(images)
        maps = self.neck(features)
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)  # (B, S, hidden)
        geometry = self._geometry(padding_mask, [(m.shape[-2], m.shape[-1]) for m in maps])
        positions = geometry.positions + self.level_embed[geometry.levels]
        memory = self.encoder(tokens, positions, geometry)
        chosen = self.query_selection(memory, geometry, forced_tokens)

        content = self.tgt_embed.weight[: chosen.logits.shape[1]]
        content = content.expand(len(padding_mask), -1, -1)
        anchors, blocked, layout = chosen.anchors_logit, None, DenoisingLayout(1, 0)
        if targets is not None and self.config.dn_number > 0:
            noised = denoising_queries(targets, self.label_enc, self.config, generator, noise)
            layout = noised.layout
            content = torch.cat([noised.content, content], dim=1)
            anchors = torch.cat([noised.anchors_logit, anchors], dim=1)
            blocked = attention_mask(layout, chosen.logits.shape[1], padding_mask.device)
        if targets is not None:
            # DDP needs every parameter in every graph, also where the batch has no boxes.
            content = content + self.label_enc.weight[0, 0] * 0.0
        decoded = self.decoder(
            content,
            anchors,
            memory,
            geometry,
            blocked,
            self.training if all_layers is None else all_layers,
        )
        split = layout.num_queries
        denoising = None
        if targets is not None and self.config.dn_number > 0:
            denoising = DenoisingOutput(
                decoded.logits[:, :, :split], decoded.boxes_cxcywh[:, :, :split], layout
            )
        logits, boxes = decoded.logits[:, :, split:], decoded.boxes_cxcywh[:, :, split:]
        return DinoOutput(logits[-1], boxes[-1], logits, boxes, chosen, denoising)

    def _geometry(self, padding_mask: Tensor, spatial_shapes: list[tuple[int, int]]) -> Geometry:
        """Of the batch; that of the last batch where the caller gave the same mask again."""
        on_cpu = padding_mask.device.type == "cpu"  # elsewhere comparing would wait for the device
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not on_cpu:
            return Geometry.of(padding_mask, spatial_shapes, self.config)
        last = self._last_geometry
        same = last is not None and last[1].spatial_shapes == spatial_shapes
        if last is None or not same or not torch.equal(last[0], padding_mask):
            geometry = Geometry.of(padding_mask, spatial_shapes, self.config)
            if not padding_mask.any():
                geometry = replace(geometry, token_mask=None)
            last = self._last_geometry = (padding_mask.clone(), geometry)
        return last[1]
