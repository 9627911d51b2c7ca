"""One-to-one matching of predictions and ground truth (DETR), costs as in DINO (ALGORITHM 23)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dino_core.boxes import cxcywh_to_xyxy, generalized_iou
from dino_core.config import LossConfig
from dino_core.targets import Target

LOG_EPS = 1e-8


@dataclass(frozen=True)
class Matches:
    """Matched pairs of G prediction groups (decoder layers, encoder); T pairs in all.

    Attributes:
        group: (T,) int64.
        image: (T,) int64.
        query: (T,) int64.
        box: (T,) int64, index among the image's ground truth.
    """

    group: Tensor
    image: Tensor
    query: Tensor
    box: Tensor


def matching_cost(logits: Tensor, boxes_cxcywh: Tensor, target: Target, loss: LossConfig) -> Tensor:
    """Cost of giving each prediction to each box of one image.

    Args:
        logits: (..., Q, C).
        boxes_cxcywh: (..., Q, 4).
        target: N boxes.
        loss: Weights of the three parts and the focal parameters.

    Returns: (..., Q, N).
    """
    p = logits[..., target.labels].sigmoid()  # (..., Q, N)
    alpha, gamma = loss.focal_alpha, loss.focal_gamma
    negative = (1 - alpha) * p**gamma * -torch.log(1 - p + LOG_EPS)
    positive = alpha * (1 - p) ** gamma * -torch.log(p + LOG_EPS)
    l1 = torch.cdist(boxes_cxcywh, target.boxes_cxcywh, p=1)
    giou = generalized_iou(
        cxcywh_to_xyxy(boxes_cxcywh)[..., :, None, :], cxcywh_to_xyxy(target.boxes_cxcywh)
    )
    return loss.cost_class * (positive - negative) + loss.cost_bbox * l1 - loss.cost_giou * giou


@torch.no_grad()
def match(
    logits: Tensor, boxes_cxcywh: Tensor, targets: Sequence[Target], loss: LossConfig
) -> Matches:
    """Assign each ground-truth box one prediction in every group, at least total cost.

    In the last group, the encoder's, each box is given `loss.encoder_repeats` predictions, or as
    many as there are.

    Args:
        logits: (G, B, Q, C) float32.
        boxes_cxcywh: (G, B, Q, 4) float32.
        targets: B of them.
        loss: Weights of the costs.
    """
    some = [image for image, target in enumerate(targets) if len(target.labels)]
    if not some:
        return Matches(*torch.zeros(4, 0, dtype=torch.int64, device=logits.device))
    costs = [matching_cost(logits[:, i], boxes_cxcywh[:, i], targets[i], loss) for i in some]
    # A diverged prediction must not abort the run here: the engine sees the NaN loss.
    cost = torch.nan_to_num(torch.cat(costs, dim=-1), nan=1e6, posinf=1e6, neginf=-1e6)
    sizes = [c.shape[-1] for c in costs]
    per_image = torch.split(cost.cpu(), sizes, dim=-1)  # the one wait for the device
    last = len(logits) - 1
    pairs = []
    for image, part in zip(some, per_image, strict=True):
        for group, square in enumerate(part.numpy()):
            repeats = loss.encoder_repeats if group == last else 1
            query, column = linear_sum_assignment(np.tile(square, repeats))
            where = np.full_like(query, group), np.full_like(query, image)
            pairs.append(np.stack([*where, query, column % square.shape[1]]))
    found = torch.from_numpy(np.concatenate(pairs, axis=1))  # (4, T)
    return Matches(*found.to(logits.device, non_blocking=True))
