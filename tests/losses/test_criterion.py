from __future__ import annotations

import itertools
import math

import pytest
import torch
from factories import tiny_config
from torchvision.ops import box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from dino_core.boxes import cxcywh_to_xyxy
from dino_core.config import LossConfig
from dino_core.losses.criterion import (
    Criterion,
    denoising_matches,
    focal_background,
    focal_foreground,
    mal_background,
    mal_foreground,
)
from dino_core.models.denoising import DenoisingLayout
from dino_core.models.dino import Dino
from dino_core.targets import Target

TARGETS = [
    Target(torch.tensor([1]), torch.tensor([[0.4, 0.4, 0.2, 0.3]])),
    Target(torch.tensor([0, 1]), torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.4]])),
]


def test_focal_loss_by_hand() -> None:
    """Logit 0: p = 0.5, so 0.25 * 0.5^2 * ln 2 present and 0.75 * 0.5^2 * ln 2 absent."""
    zero = torch.zeros(1)
    assert focal_foreground(zero, LossConfig()).item() == pytest.approx(0.0625 * math.log(2))
    assert focal_background(zero, LossConfig()).item() == pytest.approx(0.1875 * math.log(2))


def test_matchability_aware_loss_by_hand() -> None:
    """Logit 0: p = 0.5. A box of IoU 0.25 aims at 0.25^1.5 = 1/8, whose loss at 0.5 is ln 2."""
    loss, zero = LossConfig(), torch.zeros(1)
    assert mal_background(zero, loss).item() == pytest.approx(0.5**1.5 * math.log(2))
    assert mal_foreground(zero, torch.tensor([0.25]), loss).item() == pytest.approx(math.log(2))
    logit = torch.tensor([math.log(1 / 7)], requires_grad=True)  # p = 1/8: what it aims at
    mal_foreground(logit, torch.tensor([0.25]), loss).sum().backward()
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx(0.0, abs=1e-6)
    sure = mal_foreground(torch.tensor([3.0]), torch.ones(1), loss)
    assert sure.item() == pytest.approx(math.log(1 + math.exp(-3.0)))


def test_matchability_aware_loss_of_a_batch() -> None:
    """The last layer's, slot by slot; boxes learn nothing from it."""
    torch.manual_seed(0)
    model = Dino(tiny_config()).train()
    output = model(torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool), TARGETS)
    losses = Criterion(LossConfig(mal_gamma=2.0), "mal")(output, TARGETS)
    matches = losses.matches
    aims = {}
    for group, image, query, box in zip(
        matches.group, matches.image, matches.query, matches.box, strict=True
    ):
        if group == 1:
            corners = cxcywh_to_xyxy(output.boxes_cxcywh.detach()[image, query])
            truth = cxcywh_to_xyxy(TARGETS[image].boxes_cxcywh[box])
            label = int(TARGETS[image].labels[box])
            aims[int(image), int(query), label] = float(box_iou(corners[None], truth[None])) ** 2
    total = 0.0
    p = output.logits.detach().sigmoid().double()
    for place in itertools.product(*map(range, p.shape)):
        if place in aims:
            total -= aims[place] * math.log(p[place]) + (1 - aims[place]) * math.log(1 - p[place])
        else:
            total -= float(p[place]) ** 2 * math.log(1 - p[place])
    assert losses.matching.classes[1].item() == pytest.approx(total / 3, rel=1e-4)
    head = list(model.decoder.bbox_embed.parameters())  # read by no other loss of that layer
    for value, learns in ((losses.matching.classes[1], False), (losses.matching.giou[1], True)):
        found = torch.autograd.grad(value, head, allow_unused=True, retain_graph=True)
        assert any(g is not None and bool(g.any()) for g in found) == learns


def test_against_torchvision() -> None:
    """The last layer's losses, from torchvision's focal and GIoU losses."""
    torch.manual_seed(0)
    model = Dino(tiny_config()).train()
    output = model(torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool), TARGETS)
    losses = Criterion(LossConfig())(output, TARGETS)
    matches = losses.matches
    rows = matches.group == 1
    wanted = torch.zeros_like(output.logits)
    boxes, truth = [], []
    for image, query, box in zip(
        matches.image[rows], matches.query[rows], matches.box[rows], strict=True
    ):
        wanted[image, query, TARGETS[image].labels[box]] = 1
        boxes.append(output.boxes_cxcywh[image, query])
        truth.append(TARGETS[image].boxes_cxcywh[box])
    focal = sigmoid_focal_loss(output.logits, wanted, reduction="sum") / 3
    predicted, expected = torch.stack(boxes), torch.stack(truth)
    giou = generalized_box_iou_loss(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(expected))
    assert losses.matching.classes[1].item() == pytest.approx(focal.item(), rel=1e-5)
    # torchvision adds 1e-7 where the official code adds 1e-6.
    assert losses.matching.giou[1].item() == pytest.approx(giou.sum().item() / 3, rel=1e-3)
    l1 = (predicted - expected).abs().sum() / 3
    assert losses.matching.bbox[1].item() == pytest.approx(l1.item(), rel=1e-5)


def test_total_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    model = Dino(tiny_config()).train()
    images, mask = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    output = model(images, mask, TARGETS, torch.Generator().manual_seed(0))
    losses = Criterion(LossConfig())(output, TARGETS)
    assert losses.denoising is not None
    total = sum(
        (g.classes.sum() + 5 * g.bbox.sum() + 2 * g.giou.sum()).item()
        for g in (losses.matching, losses.denoising)
    )
    assert losses.total.item() == pytest.approx(total, rel=1e-5)
    doubled = Criterion(LossConfig())(output, TARGETS, num_boxes=6.0)
    assert doubled.total.item() == pytest.approx(total / 2, rel=1e-5)


def test_denoising_assignment_by_hand() -> None:
    """Two groups of two slots: [P P N N] [P P N N]; image 0 has one box, image 1 two."""
    matches = denoising_matches(1, DenoisingLayout(groups=2, slots=2), TARGETS)
    found = set(
        zip(matches.image.tolist(), matches.query.tolist(), matches.box.tolist(), strict=True)
    )
    assert found == {(0, 0, 0), (1, 0, 0), (1, 1, 1), (0, 4, 0), (1, 4, 0), (1, 5, 1)}


def test_repeated_proposals_share_the_weight_of_one() -> None:
    torch.manual_seed(0)
    model = Dino(tiny_config()).train()
    images, mask = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    output = model(images, mask, TARGETS, torch.Generator().manual_seed(0))
    once = Criterion(LossConfig())(output, TARGETS)
    twice = Criterion(LossConfig(encoder_repeats=2))(output, TARGETS)
    torch.testing.assert_close(twice.matching.bbox[:-1], once.matching.bbox[:-1])
    matches = twice.matches
    rows = matches.group == len(output.layer_logits)
    assert rows.sum() == 6
    l1 = sum(
        (output.encoder.boxes_cxcywh[image, query] - TARGETS[image].boxes_cxcywh[box]).abs().sum()
        for image, query, box in zip(
            matches.image[rows], matches.query[rows], matches.box[rows], strict=True
        )
    )
    torch.testing.assert_close(twice.matching.bbox[-1], l1 / 6)
