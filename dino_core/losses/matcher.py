"""One-to-one matching of predictions and ground truth (DETR), with DINO's costs (ALGORITHM 23)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dino_core.boxes import cxcywh_to_xyxy, generalized_iou
from dino_core.config import LossConfig
from dino_core.targets import Target, image_and_slot

# The official matcher's value. Scores that have saturated at 0 or 1 would otherwise cost infinity.
LOG_EPS = 1e-8


@dataclass(frozen=True)
class Matches:
    """T matched pairs of prediction and ground truth, over G groups (decoder layers, encoder).

    Attributes:
        group: (T,) int64, index of the group.
        image: (T,) int64, index of the image in the batch.
        query: (T,) int64, index of the prediction.
        box: (T,) int64, index of the box among those of its image.
    """

    group: Tensor
    image: Tensor
    query: Tensor
    box: Tensor


def matching_cost(
    logits: Tensor, boxes_cxcywh: Tensor, targets: Sequence[Target], loss: LossConfig
) -> Tensor:
    """The cost of assigning each box each prediction of its image.

    Args:
        logits: (G, B, Q, C).
        boxes_cxcywh: (G, B, Q, 4).
        targets: Ground truth of the B images, N boxes in all.
        loss: Weights of the three parts, and the parameters of the focal loss.

    Returns: (N, G, Q), boxes in the order of the images.
    """
    image, _ = image_and_slot(targets)
    labels = torch.cat([target.labels for target in targets])
    wanted = torch.cat([target.boxes_cxcywh for target in targets])[:, None, None]
    predicted = boxes_cxcywh.transpose(0, 1)  # (B, G, Q, 4)
    if len(targets) > 1:  # one image broadcasts over its boxes without a copy
        predicted = predicted[image]  # (N, G, Q, 4)
    p = logits[:, image, :, labels].sigmoid()  # (N, G, Q), of each box's own class
    alpha, gamma = loss.focal_alpha, loss.focal_gamma
    # This is the focal loss of a query as an object of this class minus that of the same query as
    # background, so the cost is how much the class loss changes by the assignment. It is evaluated
    # for the box's own class only, not for all C classes.
    negative = (1 - alpha) * p**gamma * -torch.log(1 - p + LOG_EPS)
    positive = alpha * (1 - p) ** gamma * -torch.log(p + LOG_EPS)
    # Coordinate by coordinate, so that no tensor (N, G, Q, 4) of differences is made.
    sides = zip(predicted.unbind(-1), wanted.unbind(-1), strict=True)
    l1 = cast(Tensor, sum((a - b).abs() for a, b in sides))
    giou = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))  # (N, G, Q)
    # The loss has 1 - GIoU. The constant is the same for every pair, so it does not affect the
    # assignment.
    return loss.cost_class * (positive - negative) + loss.cost_bbox * l1 - loss.cost_giou * giou


@torch.no_grad()
def match(
    logits: Tensor, boxes_cxcywh: Tensor, targets: Sequence[Target], loss: LossConfig
) -> Matches:
    """Assign each ground-truth box one prediction in every group, at the least total cost.

    In the last group, the encoder's, each box gets `loss.encoder_repeats` predictions, as far as
    there are enough.

    Args:
        logits: (G, B, Q, C) float32.
        boxes_cxcywh: (G, B, Q, 4) float32.
        targets: Ground truth of the B images.
        loss: Weights of the costs.
    """
    counts = [len(target.labels) for target in targets]
    # Without a box there is nothing to concatenate or to assign, and the device need not be waited
    # for.
    if not any(counts):
        return Matches(*torch.zeros(4, 0, dtype=torch.int64, device=logits.device))
    # Image by image the costs stay in a CPU's cache. A GPU gets the whole batch at once, since
    # launching kernels for each image would leave it idle.
    alone = logits.device.type == "cpu"
    parts = [slice(i, i + 1) for i in range(len(targets))] if alone else [slice(None)]
    costs = [matching_cost(logits[:, p], boxes_cxcywh[:, p], targets[p], loss) for p in parts]
    # A diverged prediction must not abort the run here: the engine sees the NaN loss.
    cost = torch.nan_to_num(torch.cat(costs), nan=1e6, posinf=1e6, neginf=-1e6)
    per_image = torch.split(cost.cpu(), counts)  # the only wait for the device
    last = len(logits) - 1
    pairs = []
    for image, part in enumerate(per_image):
        for group, of_boxes in enumerate(part.numpy().transpose(1, 2, 0)):  # (Q, N)
            repeats = loss.encoder_repeats if group == last else 1
            # scipy's solver takes rectangular costs and assigns as many pairs as the shorter side
            # has, so an image with more boxes than queries does not fail: its surplus boxes get no
            # query.
            # Repeated columns let a box be assigned several times, and modulo finds it again.
            query, column = linear_sum_assignment(np.tile(of_boxes, repeats))
            # The divisor is at least 1 because an image without boxes has no columns.
            where = np.full_like(query, group), np.full_like(query, image)
            pairs.append(np.stack([*where, query, column % max(1, of_boxes.shape[1])]))
    found = torch.from_numpy(np.concatenate(pairs, axis=1))  # (4, T)
    return Matches(*found.to(logits.device, non_blocking=True))
