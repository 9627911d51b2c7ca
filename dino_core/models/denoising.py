"""Contrastive denoising queries (paper 3.3): noised ground truth, positive and negative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dino_core.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from dino_core.config import ModelConfig
from dino_core.targets import Target, image_and_slot


@dataclass(frozen=True)
class NoiseDraws:
    """The random numbers of one batch; N = boxes of the batch, R = 2 * groups repeats.

    Attributes:
        label_chance: (R * N,) uniform in [0, 1): a label flips where below half the noise ratio.
        new_labels: (flips,) int64 labels for the flipped positions, in order.
        box_sign: (R * N, 4) int64 0 or 1: the direction of each corner's shift.
        box_size: (R * N, 4) uniform in [0, 1): its size.
    """

    label_chance: Tensor
    new_labels: Tensor
    box_sign: Tensor
    box_size: Tensor


@dataclass(frozen=True)
class DenoisingLayout:
    """Where the queries stand: group g holds `slots` positives, then `slots` negatives.

    Attributes:
        groups: Number of groups.
        slots: Most boxes of one image in the batch.
    """

    groups: int
    slots: int

    @property
    def num_queries(self) -> int:
        return 2 * self.groups * self.slots


@dataclass(frozen=True)
class DenoisingQueries:
    """Queries for the decoder, before the matching queries; P = layout.num_queries.

    Attributes:
        content: (B, P, hidden) label embeddings, zero in empty slots.
        anchors_logit: (B, P, 4) boxes before the sigmoid, zero in empty slots.
        labels: (B, P) int64 noised labels, -1 in empty slots.
        layout: Groups and slots.
    """

    content: Tensor
    anchors_logit: Tensor
    labels: Tensor
    layout: DenoisingLayout


def denoising_layout(counts: Sequence[int], dn_number: int) -> DenoisingLayout:
    """Share `2 * dn_number` queries among groups of twice the largest box count (ALGORITHM 19).

    The official code skips the division where `2 * dn_number < 100`; ours always divides.
    """
    slots = max(counts, default=0)
    if slots == 0:
        return DenoisingLayout(groups=1, slots=0)
    return DenoisingLayout(groups=max(1, (2 * dn_number) // (2 * slots)), slots=slots)


def draw_noise(
    num_boxes: int, layout: DenoisingLayout, config: ModelConfig, generator: torch.Generator | None
) -> NoiseDraws:
    """Draw on the generator's device (the default generator: CPU), in the official order."""
    rows = 2 * layout.groups * num_boxes
    device = torch.device("cpu") if generator is None else generator.device
    chance = torch.rand(rows, generator=generator, device=device)
    flips = int((chance < config.dn_label_noise_ratio * 0.5).sum())
    return NoiseDraws(
        label_chance=chance,
        new_labels=torch.randint(
            0, config.num_classes, (flips,), generator=generator, device=device
        ),
        box_sign=torch.randint(0, 2, (rows, 4), generator=generator, device=device),
        box_size=torch.rand((rows, 4), generator=generator, device=device),
    )


def denoising_queries(
    targets: Sequence[Target],
    label_embedding: nn.Embedding,
    config: ModelConfig,
    generator: torch.Generator | None = None,
    draws: NoiseDraws | None = None,
) -> DenoisingQueries:
    """Noise the batch's ground truth into queries (ALGORITHM 19-21).

    Args:
        targets: One a image.
        label_embedding: (C + 1, hidden).
        config: Supplies the number of queries and the noise scales.
        generator: Source of randomness where `draws` is None.
        draws: Replay these numbers.
    """
    counts = [len(t.labels) for t in targets]
    layout = denoising_layout(counts, config.dn_number)
    labels = torch.cat([t.labels for t in targets])  # (N,)
    boxes = torch.cat([t.boxes_cxcywh for t in targets])  # (N, 4)
    if draws is None:
        draws = draw_noise(len(labels), layout, config, generator)
    device, repeats = labels.device, 2 * layout.groups
    flipped = draws.label_chance.to(device) < config.dn_label_noise_ratio * 0.5
    noised_labels = labels.repeat(repeats).masked_scatter(flipped, draws.new_labels.to(device))
    anchors_logit = inverse_sigmoid(_noised_boxes(boxes, layout.groups, draws, config))

    batch, queries = len(targets), layout.num_queries
    image, slot = image_and_slot(targets)
    half = torch.arange(repeats, device=device).repeat_interleave(len(labels))
    where = (image.repeat(repeats), half * layout.slots + slot.repeat(repeats))
    embedded = label_embedding(noised_labels)
    content = embedded.new_zeros(batch, queries, embedded.shape[-1])
    return DenoisingQueries(
        content=content.index_put(where, embedded),
        anchors_logit=boxes.new_zeros(batch, queries, 4).index_put(where, anchors_logit),
        labels=labels.new_full((batch, queries), -1).index_put(where, noised_labels),
        layout=layout,
    )


def _noised_boxes(
    boxes_cxcywh: Tensor, groups: int, draws: NoiseDraws, config: ModelConfig
) -> Tensor:
    """(N, 4) -> (2 * groups * N, 4): corners moved by up to half a side, negatives by more.

    Negatives may come out with negative width or height, as in the official code.
    """
    device, count = boxes_cxcywh.device, len(boxes_cxcywh)
    negative = torch.tensor([0.0, 1.0], device=device).repeat(groups).repeat_interleave(count)
    size = draws.box_size.to(device) + negative[:, None]
    shift = size * (draws.box_sign.to(device) * 2 - 1)
    half_side = boxes_cxcywh[:, 2:].repeat(2 * groups, 2) / 2
    corners = cxcywh_to_xyxy(boxes_cxcywh).repeat(2 * groups, 1)
    corners = (corners + shift * half_side * config.dn_box_noise_scale).clamp(0, 1)
    return xyxy_to_cxcywh(corners)


def attention_mask(layout: DenoisingLayout, num_matching: int, device: torch.device) -> Tensor:
    """Who may not see whom in the decoder's self-attention (ALGORITHM 22).

    Returns: (P + Q, P + Q) bool, True = blocked: matching queries do not see denoising ones, and
        groups do not see each other; denoising queries do see the matching ones.
    """
    queries = layout.num_queries
    group = torch.arange(queries, device=device) // max(1, 2 * layout.slots)
    blocked = torch.zeros(queries + num_matching, queries + num_matching, dtype=torch.bool)
    blocked = blocked.to(device)
    blocked[queries:, :queries] = True
    blocked[:queries, :queries] = group[:, None] != group[None, :]
    return blocked
