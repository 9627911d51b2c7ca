"""Box conversions, IoU and GIoU on tensors, as DINO's matcher and losses need them."""

from __future__ import annotations

import torch
from torch import Tensor

IOU_EPS = 1e-6  # added to both denominators, as in the official box_ops (ALGORITHM 23)


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """(..., 4) center, width, height -> (..., 4) corners."""
    center, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) corners -> (..., 4) center, width, height."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """IoU in [0, 1] of boxes that broadcast against each other, with `IOU_EPS`.

    Args:
        boxes1_xyxy: (..., 4) corners.
        boxes2_xyxy: (..., 4) corners, broadcastable to `boxes1_xyxy`.
    """
    intersection, union = _overlap(boxes1_xyxy, boxes2_xyxy)
    return intersection / (union + IOU_EPS)


def generalized_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """GIoU of boxes that broadcast against each other.

    Args:
        boxes1_xyxy: (..., 4) corners.
        boxes2_xyxy: (..., 4) corners, broadcastable to `boxes1_xyxy`.

    Returns: (...) GIoU in (-1, 1]. Source: arXiv 1902.09630, with `IOU_EPS`.
    """
    intersection, union = _overlap(boxes1_xyxy, boxes2_xyxy)
    hull_low = torch.minimum(boxes1_xyxy[..., :2], boxes2_xyxy[..., :2])
    hull_high = torch.maximum(boxes1_xyxy[..., 2:], boxes2_xyxy[..., 2:])
    hull = (hull_high - hull_low).clamp(min=0).prod(dim=-1)
    return intersection / (union + IOU_EPS) - (hull - union) / (hull + IOU_EPS)


def _overlap(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union."""
    low = torch.maximum(boxes1_xyxy[..., :2], boxes2_xyxy[..., :2])
    high = torch.minimum(boxes1_xyxy[..., 2:], boxes2_xyxy[..., 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    area1 = (boxes1_xyxy[..., 2:] - boxes1_xyxy[..., :2]).prod(dim=-1)
    area2 = (boxes2_xyxy[..., 2:] - boxes2_xyxy[..., :2]).prod(dim=-1)
    return intersection, area1 + area2 - intersection


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """log(x / (1 - x)) with x and 1 - x clamped to at least `eps` (ALGORITHM 14)."""
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
