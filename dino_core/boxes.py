"""Box conversions, IoU and GIoU on tensors, as DINO's matcher and losses need them."""

from __future__ import annotations

import torch
from torch import Tensor

IOU_EPS = 1e-6  # added to both denominators, as in the official box_ops (ALGORITHM 23)


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """(..., 4) boxes cxcywh -> (..., 4) boxes xyxy, in the same units."""
    center, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) boxes xyxy -> (..., 4) boxes cxcywh, in the same units."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """Intersection over union of boxes that broadcast against each other.

    Args:
        boxes1_xyxy: (..., 4) corners.
        boxes2_xyxy: (..., 4) corners, broadcastable to `boxes1_xyxy`.

    Returns: (...) IoU in [0, 1], with `IOU_EPS` in the denominator.
    """
    intersection, union = _overlap(boxes1_xyxy, boxes2_xyxy)
    return intersection / (union + IOU_EPS)


def generalized_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """Generalized IoU (arXiv 1902.09630) of boxes that broadcast against each other.

    Args:
        boxes1_xyxy: (..., 4) corners.
        boxes2_xyxy: (..., 4) corners, broadcastable to `boxes1_xyxy`.

    Returns: (...) GIoU in (-1, 1], with `IOU_EPS` in both denominators.
    """
    intersection, union = _overlap(boxes1_xyxy, boxes2_xyxy)
    hull_low = torch.minimum(boxes1_xyxy[..., :2], boxes2_xyxy[..., :2])
    hull_high = torch.maximum(boxes1_xyxy[..., 2:], boxes2_xyxy[..., 2:])
    hull = (hull_high - hull_low).clamp(min=0).prod(dim=-1)
    return intersection / (union + IOU_EPS) - (hull - union) / (hull + IOU_EPS)


def _overlap(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """The areas of intersection and union, each (...)."""
    low = torch.maximum(boxes1_xyxy[..., :2], boxes2_xyxy[..., :2])
    high = torch.minimum(boxes1_xyxy[..., 2:], boxes2_xyxy[..., 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    area1 = (boxes1_xyxy[..., 2:] - boxes1_xyxy[..., :2]).prod(dim=-1)
    area2 = (boxes2_xyxy[..., 2:] - boxes2_xyxy[..., :2]).prod(dim=-1)
    return intersection, area1 + area2 - intersection


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """The logit log(x / (1 - x)), with x and 1 - x clamped to at least `eps` (ALGORITHM 14)."""
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
