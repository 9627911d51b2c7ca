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
    """The random numbers of one batch of N boxes, each repeated R = 2 * groups times.

    Attributes:
        label_chance: (R * N,) uniform in [0, 1). A label flips where this is below half the noise
            ratio.
        new_labels: (flips,) int64 labels for the flipped positions, in order.
        box_sign: (R * N, 4) int64 0 or 1, the direction in which each corner coordinate moves.
        box_size: (R * N, 4) uniform in [0, 1), how far it moves.
    """

    label_chance: Tensor
    new_labels: Tensor
    box_sign: Tensor
    box_size: Tensor


@dataclass(frozen=True)
class DenoisingLayout:
    """The order of the queries: each group has `slots` positives, followed by `slots` negatives.

    Attributes:
        groups: Number of groups.
        slots: The largest number of boxes of an image in the batch.
    """

    groups: int
    slots: int

    @property
    def num_queries(self) -> int:
        return 2 * self.groups * self.slots


@dataclass(frozen=True)
class DenoisingQueries:
    """The denoising queries, which precede the matching queries; P = layout.num_queries.

    Attributes:
        content: (B, P, hidden) label embeddings, zero in empty slots.
        anchors_logit: (B, P, 4) boxes before the sigmoid, zero in empty slots.
        labels: (B, P) int64 noised labels, -1 in empty slots.
        layout: Number of groups and of slots in each.
    """

    content: Tensor
    anchors_logit: Tensor
    labels: Tensor
    layout: DenoisingLayout


def denoising_layout(counts: Sequence[int], dn_number: int) -> DenoisingLayout:
    """Divide `2 * dn_number` queries into groups of twice the largest box count (ALGORITHM 19).

    The official code skips the division where `2 * dn_number < 100`. This one always divides.

    Args:
        counts: Number of boxes of each image.
        dn_number: Half the number of denoising queries.
    """
    # All images of the batch share one layout, which the fullest image decides. The others leave
    # slots empty, so what a batch computes depends on which images are together (ALGORITHM 21).
    slots = max(counts, default=0)
    if slots == 0:
        return DenoisingLayout(groups=1, slots=0)
    return DenoisingLayout(groups=max(1, (2 * dn_number) // (2 * slots)), slots=slots)


def draw_noise(
    num_boxes: int, layout: DenoisingLayout, config: ModelConfig, generator: torch.Generator | None
) -> NoiseDraws:
    """Draw the noise, in the order of the official code.

    Args:
        num_boxes: Boxes of the batch.
        layout: Groups and slots.
        config: Supplies the label noise ratio and the number of classes.
        generator: Source of randomness, whose device holds the result; None for torch's on the CPU.
    """
    # The order of the draws matters: with the official order, recorded draws of the official code
    # can be compared with ours number by number (tests/golden).
    rows = 2 * layout.groups * num_boxes
    device = torch.device("cpu") if generator is None else generator.device
    chance = torch.rand(rows, generator=generator, device=device)
    # A random label may be the true one, so with a ratio r slightly fewer than r / 2 of the labels
    # change (ALGORITHM 20). Their number must be known here, which costs nothing on the CPU, where
    # training has its generator, and would be a wait on a GPU.
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
    """Make queries of the batch's ground truth by adding noise (paper 3.3, ALGORITHM 19-21).

    Args:
        targets: One per image.
        label_embedding: (C + 1, hidden).
        config: Supplies the number of queries and the noise scales.
        generator: Source of randomness if `draws` is None.
        draws: The random numbers to use; None draws them.
    """
    counts = [len(t.labels) for t in targets]
    layout = denoising_layout(counts, config.dn_number)
    # Below, every per-box tensor is repeated R = 2 * groups times along its first axis: (R * N,
    # ...).
    labels = torch.cat([t.labels for t in targets])  # (N,)
    boxes = torch.cat([t.boxes_cxcywh for t in targets])  # (N, 4)
    if draws is None:
        draws = draw_noise(len(labels), layout, config, generator)
    device, repeats = labels.device, 2 * layout.groups
    flipped = draws.label_chance.to(device) < config.dn_label_noise_ratio * 0.5
    noised_labels = labels.repeat(repeats).masked_scatter(flipped, draws.new_labels.to(device))
    # The clamp in the inverse sigmoid also catches the negative sides that a negative may have, so
    # no logarithm sees a number below 1e-3.
    anchors_logit = inverse_sigmoid(_noised_boxes(boxes, layout.groups, draws, config))

    # All repeats of all boxes are one list. Repeat r belongs to half r: even ones are the positives
    # of group r / 2, odd ones its negatives. Images with fewer boxes leave their last slots empty.
    batch, queries = len(targets), layout.num_queries
    image, slot = image_and_slot(targets)
    half = torch.arange(repeats, device=device).repeat_interleave(len(labels))
    where = (image.repeat(repeats), half * layout.slots + slot.repeat(repeats))
    embedded = label_embedding(noised_labels)
    content = embedded.new_zeros(batch, queries, embedded.shape[-1])
    return DenoisingQueries(
        # Empty slots stay zero, which the decoder treats as queries like others (ALGORITHM 21).
        content=content.index_put(where, embedded),
        anchors_logit=boxes.new_zeros(batch, queries, 4).index_put(where, anchors_logit),
        labels=labels.new_full((batch, queries), -1).index_put(where, noised_labels),
        layout=layout,
    )


def _noised_boxes(
    boxes_cxcywh: Tensor, groups: int, draws: NoiseDraws, config: ModelConfig
) -> Tensor:
    """(N, 4) -> (2 * groups * N, 4) boxes cxcywh whose corners moved.

    With a noise scale of 1 a corner of a positive moves by up to half of the box's side, that of a
    negative by half to a whole side (paper 3.3). A negative may therefore get a negative width or
    height, as in the official code.
    """
    device, count = boxes_cxcywh.device, len(boxes_cxcywh)
    # One row for each repeat: half of a group has shifts in [0, 1), the other half in [1, 2).
    negative = torch.tensor([0.0, 1.0], device=device).repeat(groups).repeat_interleave(count)
    size = draws.box_size.to(device) + negative[:, None]
    shift = size * (draws.box_sign.to(device) * 2 - 1)
    half_side = boxes_cxcywh[:, 2:].repeat(2 * groups, 2) / 2
    corners = cxcywh_to_xyxy(boxes_cxcywh).repeat(2 * groups, 1)
    # Clamped, since a box outside of the image has no logit.
    corners = (corners + shift * half_side * config.dn_box_noise_scale).clamp(0, 1)
    return xyxy_to_cxcywh(corners)


def attention_mask(layout: DenoisingLayout, num_matching: int, device: torch.device) -> Tensor:
    """Which queries may not attend to which in the decoder's self-attention (ALGORITHM 22).

    Matching queries must not see the denoising ones, which carry the ground truth, and groups must
    not see each other. Denoising queries do see the matching ones.

    Returns: (P + Q, P + Q) bool, True = the row may not attend to the column.
    """
    queries = layout.num_queries
    # Positives and negatives of one group have the same number here and so may see each other.
    group = torch.arange(queries, device=device) // max(1, 2 * layout.slots)
    blocked = torch.zeros(queries + num_matching, queries + num_matching, dtype=torch.bool)
    blocked = blocked.to(device)
    # Rows attend, columns are attended to. The lower left part keeps the ground truth from matching
    # queries, which would otherwise simply copy it. The upper right part stays open.
    blocked[queries:, :queries] = True
    blocked[:queries, :queries] = group[:, None] != group[None, :]
    return blocked
