from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import generalized_box_iou

from dino_core.boxes import cxcywh_to_xyxy, generalized_iou, inverse_sigmoid, xyxy_to_cxcywh


def test_conversions_by_hand() -> None:
    center = torch.tensor([[5.0, 6.0, 4.0, 2.0]])
    corners = torch.tensor([[3.0, 5.0, 7.0, 7.0]])
    assert cxcywh_to_xyxy(center).equal(corners)
    assert xyxy_to_cxcywh(corners).equal(center)


def test_giou_against_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    low, size = torch.rand(2, 6, 2, generator=generator), torch.rand(2, 6, 2, generator=generator)
    boxes = torch.cat([low, low + size + 0.1], -1)
    ours = generalized_iou(boxes[0][:, None], boxes[1][None])
    # 1e-6 in both denominators, over areas of at least 0.01
    torch.testing.assert_close(ours, generalized_box_iou(*boxes), atol=2e-4, rtol=0)


def test_giou_of_disjoint_boxes_by_hand() -> None:
    """Two unit squares one apart: IoU 0, hull 3, union 2: -1/3."""
    a, b = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([2.0, 0.0, 3.0, 1.0])
    assert generalized_iou(a, b).item() == pytest.approx(-1 / 3, abs=1e-5)


def test_inverse_sigmoid_clamps_at_eps() -> None:
    ours = inverse_sigmoid(torch.tensor([0.0, 0.25, 1.0, 2.0]))
    top = math.log(1 / 1e-3)
    assert ours.tolist() == pytest.approx([-top, math.log(1 / 3), top, top])
    assert inverse_sigmoid(torch.tensor(0.0), 1e-5).item() == pytest.approx(math.log(1e-5))
