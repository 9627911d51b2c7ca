"""DINO's loss: class, L1 and GIoU terms of decoder layers, encoder and denoising queries.

It follows ALGORITHM 23-25. All prediction groups (decoder layers and encoder) are stacked into one
tensor, so that the number of kernels does not grow with the number of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dino_core.boxes import cxcywh_to_xyxy, generalized_iou, iou
from dino_core.config import ClassLossName, LossConfig
from dino_core.losses.matcher import Matches, match
from dino_core.models.denoising import DenoisingLayout
from dino_core.models.dino import DinoOutput
from dino_core.targets import Target, image_and_slot


@dataclass(frozen=True)
class GroupLosses:
    """Unweighted losses of G prediction groups, each (G,).

    Attributes:
        classes: Sigmoid focal or matchability-aware loss, summed over queries and classes, per box.
        bbox: L1 distance of center, width and height, per box.
        giou: 1 - GIoU, per box.
        center: The part of `bbox` that comes from the center.
    """

    classes: Tensor
    bbox: Tensor
    giou: Tensor
    center: Tensor

    def weighted(self, loss: LossConfig) -> Tensor:
        """The weighted sum over all groups, a scalar."""
        return (
            loss.weight_class * self.classes
            + loss.weight_bbox * self.bbox
            + loss.weight_giou * self.giou
        ).sum()


@dataclass(frozen=True)
class Losses:
    """The loss of one batch.

    Attributes:
        total: Scalar with gradient.
        matching: Groups: decoder layers 0..N-1, then the encoder.
        denoising: Groups: decoder layers 0..N-1; None where no denoising queries ran.
        matches: The assignment behind `matching`.
    """

    total: Tensor
    matching: GroupLosses
    denoising: GroupLosses | None
    matches: Matches

    @property
    def terms(self) -> dict[str, Tensor]:
        """What people watch: the last layer's and the encoder's losses, detached."""
        values = {"total": self.total.detach()}
        # The encoder's proposals are the last group of `matching`, so the last decoder layer is at
        # -2. Denoising queries exist in decoder layers only.
        for prefix, group, index in (("", self.matching, -2), ("dn_", self.denoising, -1)):
            if group is not None:
                values[f"{prefix}class"] = group.classes[index].detach()
                values[f"{prefix}bbox"] = group.bbox[index].detach()
                values[f"{prefix}giou"] = group.giou[index].detach()
        values["encoder_class"] = self.matching.classes[-1].detach()
        return values


class Criterion(nn.Module):
    """Matches predictions to ground truth and sums the losses."""

    def __init__(self, loss: LossConfig, class_loss: ClassLossName = "focal") -> None:
        super().__init__()
        self.loss = loss
        self.class_loss = class_loss

    def forward(
        self, output: DinoOutput, targets: Sequence[Target], num_boxes: float | None = None
    ) -> Losses:
        """Compute the losses of one batch.

        Args:
            output: Predictions of a model in training mode.
            targets: Ground truth of the B images.
            num_boxes: What the losses are divided by: the number of boxes, which the caller
                averages over the ranks. By default that of this batch.
        """
        # A batch without boxes still has a loss, since every query must learn to be background. The
        # lower limit keeps it from being divided by zero (ALGORITHM 24).
        boxes = float(sum(len(t.labels) for t in targets)) if num_boxes is None else num_boxes
        boxes = max(boxes, 1.0)
        # The encoder's group must be last: `match` and `terms` rely on it. Each group is matched by
        # itself, because a query may describe another object in another layer (ALGORITHM 23).
        logits = [*output.layer_logits, output.encoder.logits]
        all_boxes = [*output.layer_boxes_cxcywh, output.encoder.boxes_cxcywh]
        stacked_logits, stacked_boxes = torch.stack(logits), torch.stack(all_boxes)  # (G, B, Q, C)
        matches = match(stacked_logits, stacked_boxes, targets, self.loss)
        # With several proposals per box the encoder's loss keeps its weight, since it is divided by
        # the number of matches (H-DETR, arXiv 2207.13080, section 3).
        normalizers = stacked_logits.new_full((len(logits),), boxes)
        normalizers[-1] *= self.loss.encoder_repeats
        matching = self._losses(stacked_logits, stacked_boxes, matches, targets, normalizers)
        total = matching.weighted(self.loss)
        denoising = None
        if output.denoising is not None:
            layout = output.denoising.layout
            # Denoising queries need no matching: each was made from a known box (paper 3.3).
            fixed = denoising_matches(len(output.layer_logits), layout, targets)
            denoising = self._losses(
                output.denoising.logits,
                output.denoising.boxes_cxcywh,
                fixed,
                targets,
                # Each box is in every group as a positive once, so there are `groups` times as many
                # (ALGORITHM 24).
                stacked_logits.new_full((len(output.layer_logits),), boxes * layout.groups),
            )
            total = total + denoising.weighted(self.loss)
        return Losses(total, matching, denoising, matches)

    def _losses(
        self,
        logits: Tensor,
        boxes_cxcywh: Tensor,
        matches: Matches,
        targets: Sequence[Target],
        num_boxes: Tensor,
    ) -> GroupLosses:
        """The losses of each group.

        Args:
            logits: (G, B, Q, C).
            boxes_cxcywh: (G, B, Q, 4).
            matches: The T pairs of predictions and ground truth.
            targets: Ground truth of the B images.
            num_boxes: (G,) what the losses of each group are divided by.
        """
        groups = logits.shape[0]
        # Boxes are numbered within their image, but the targets are concatenated. This adds to each
        # number the count of all boxes in the images before.
        # Row of each matched box in the concatenated ground truth.
        first = torch.tensor([0] + [len(t.labels) for t in targets[:-1]]).cumsum(0)
        row = first.to(logits.device)[matches.image] + matches.box
        labels = torch.cat([t.labels for t in targets])[row]
        wanted = torch.cat([t.boxes_cxcywh for t in targets])[row]

        where = (matches.group, matches.image, matches.query)
        positive = logits[(*where, labels)]  # (T,) the logit of the right class
        predicted = boxes_cxcywh[where]  # (T, 4)
        l1 = functional.l1_loss(predicted, wanted, reduction="none")
        corners = cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted)
        giou = generalized_iou(*corners)  # (T,)
        if self.class_loss == "focal":
            absent, present = focal_background, focal_foreground(positive, self.loss)
        else:
            # The IoU is a target here and must not have a gradient. With one, a worse box would
            # lower the class loss wherever the score is too low.
            quality = iou(corners[0].detach(), corners[1])
            absent, present = mal_background, mal_foreground(positive, quality, self.loss)
        # Every logit counts as an absent class; at the T positive ones that is then replaced. So
        # no one-hot target of the size of the logits is ever built.
        background = absent(logits, self.loss).flatten(1).sum(dim=1)
        correction = present - absent(positive, self.loss)

        def per_group(values: Tensor) -> Tensor:
            return values.new_zeros(groups).index_add(0, matches.group, values) / num_boxes

        return GroupLosses(
            # `background` is the sum of each group already, while the other values belong to single
            # pairs.
            classes=background / num_boxes + per_group(correction),
            bbox=per_group(l1.sum(dim=-1)),
            giou=per_group(1 - giou),
            center=per_group(l1[:, :2].sum(dim=-1)),
        )


def focal_background(logits: Tensor, loss: LossConfig) -> Tensor:
    """Focal loss (arXiv 1708.02002) of logits whose class is absent, elementwise.

    softplus(x) is -log(1 - sigmoid(x)), without overflow.
    """
    return (
        (1 - loss.focal_alpha) * logits.sigmoid() ** loss.focal_gamma * functional.softplus(logits)
    )


def focal_foreground(logits: Tensor, loss: LossConfig) -> Tensor:
    """Focal loss of logits whose class is present, elementwise."""
    return (
        loss.focal_alpha
        * logits.neg().sigmoid() ** loss.focal_gamma
        * functional.softplus(logits.neg())
    )


def mal_background(logits: Tensor, loss: LossConfig) -> Tensor:
    """Matchability-aware loss of logits whose class is absent (arXiv 2412.04234), elementwise."""
    return logits.sigmoid() ** loss.mal_gamma * functional.softplus(logits)


def mal_foreground(logits: Tensor, quality: Tensor, loss: LossConfig) -> Tensor:
    """Matchability-aware loss of logits whose class is present, elementwise.

    The target of the score is `quality`, the IoU of the predicted box, to the power of `mal_gamma`.
    """
    aim = quality**loss.mal_gamma
    return aim * functional.softplus(-logits) + (1 - aim) * functional.softplus(logits)


def denoising_matches(layers: int, layout: DenoisingLayout, targets: Sequence[Target]) -> Matches:
    """The matches of denoising queries: slot i of every positive half is box i (ALGORITHM 20, 24).

    Negative halves are matched to nothing, so that they learn to predict no object.

    Args:
        layers: Number of decoder layers.
        layout: Groups and slots of the queries.
        targets: Ground truth of the batch.
    """
    # A group has 2 * slots queries: its positives, then its negatives. Only the positives'
    # positions are generated, and every decoder layer has the same ones.
    image, box = image_and_slot(targets)
    device = box.device
    group = torch.arange(layout.groups, device=device)
    query = (group[:, None] * 2 * layout.slots + box[None, :]).flatten()  # (groups * N,)
    per_layer = len(query)
    return Matches(
        group=torch.arange(layers, device=device).repeat_interleave(per_layer),
        image=image.repeat(layout.groups * layers),
        query=query.repeat(layers),
        box=box.repeat(layout.groups * layers),
    )
