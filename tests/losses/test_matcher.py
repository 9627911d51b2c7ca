from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from golden import recipe

from dino_core.config import LossConfig
from dino_core.losses.matcher import match, matching_cost
from dino_core.targets import Target

GOLDEN = Path(__file__).parents[1] / "golden" / "golden_matcher.npz"


def test_official_costs_and_assignments() -> None:
    logits, boxes = recipe.matcher_inputs()
    with np.load(GOLDEN) as file:
        theirs = dict(file)
    targets = recipe.targets()
    cost = matching_cost(logits[None], boxes[None], targets, LossConfig())[:, 0]
    per_image = cost.split([len(target.labels) for target in targets])
    for image, part in enumerate(per_image):
        # Values up to 10, the same formula in another order.
        np.testing.assert_allclose(part.T[:50], theirs[f"cost_img{image}"], atol=1e-5)
    matches = match(logits[None], boxes[None], recipe.targets(), LossConfig())
    for image in range(2):
        rows = matches.image == image
        assert matches.query[rows].tolist() == theirs[f"pred_idx_{image}"].tolist()
        assert matches.box[rows].tolist() == theirs[f"tgt_idx_{image}"].tolist()


def test_parts_of_the_cost() -> None:
    """Each part alone, by setting the other weights to zero."""
    logits, boxes = recipe.matcher_inputs()
    everything = Target(
        torch.cat([t.labels for t in recipe.targets()]),
        torch.cat([t.boxes_cxcywh for t in recipe.targets()]),
    )
    with np.load(GOLDEN) as file:
        for name in ("class", "bbox", "giou"):
            weights = {f"cost_{n}": float(n == name) for n in ("class", "bbox", "giou")}
            first_ten = logits[None, :1, :10], boxes[None, :1, :10]
            cost = matching_cost(*first_ten, [everything], LossConfig(**weights))[:, 0].T
            np.testing.assert_allclose(cost, file[f"cost_{name}_first10"], atol=1e-5)


def test_least_total_cost_by_exhaustion() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, 5, 3, generator=generator)
    boxes = torch.rand(1, 1, 5, 4, generator=generator) * 0.5 + 0.2
    target = Target(torch.tensor([0, 2, 1]), torch.rand(3, 4, generator=generator) * 0.5 + 0.2)
    cost = matching_cost(logits, boxes, [target], LossConfig())[:, 0].T
    best = min(
        itertools.permutations(range(5), 3),
        key=lambda queries: sum(cost[q, i].item() for i, q in enumerate(queries)),
    )
    matches = match(logits, boxes, [target], LossConfig())
    found = dict(zip(matches.box.tolist(), matches.query.tolist(), strict=True))
    assert [found[i] for i in range(3)] == list(best)


def test_groups_are_matched_independently() -> None:
    logits, boxes = recipe.matcher_inputs()
    swapped = torch.stack([logits, logits.flip(1)]), torch.stack([boxes, boxes.flip(1)])
    matches = match(*swapped, recipe.targets(), LossConfig())
    first, second = (matches.query[matches.group == g] for g in range(2))
    assert sorted(second.tolist()) == sorted((899 - first).tolist())


def test_costs_of_a_batch_are_those_of_its_images() -> None:
    """A GPU takes the batch at once, a CPU image by image; one of them has no boxes."""
    logits, boxes = recipe.matcher_inputs()
    first, second = recipe.targets()
    targets = [first, first.empty(), second]
    stacked = logits[[0, 0, 1]][None], boxes[[0, 0, 1]][None]
    together = matching_cost(*stacked, targets, LossConfig())
    apart = [
        matching_cost(*(t[:, i : i + 1] for t in stacked), targets[i : i + 1], LossConfig())
        for i in range(3)
    ]
    assert [len(part) for part in apart] == [len(first.labels), 0, len(second.labels)]
    torch.testing.assert_close(together, torch.cat(apart))
    matches = match(*stacked, targets, LossConfig())
    assert matches.image.unique().tolist() == [0, 2]


def test_no_boxes_no_matches() -> None:
    logits, boxes = recipe.matcher_inputs()
    empty = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    assert len(match(logits[None], boxes[None], [empty, empty], LossConfig()).query) == 0


def test_nan_predictions_do_not_abort() -> None:
    logits, boxes = recipe.matcher_inputs()
    matches = match(logits[None] * float("nan"), boxes[None], recipe.targets(), LossConfig())
    assert len(matches.query) == 8


def test_repeats_give_the_encoder_alone_more_proposals() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, 7, 3, generator=generator).repeat(2, 1, 1, 1)
    boxes = torch.rand(1, 1, 7, 4, generator=generator).repeat(2, 1, 1, 1) * 0.5 + 0.2
    target = Target(torch.tensor([0, 2]), torch.rand(2, 4, generator=generator) * 0.5 + 0.2)
    matches = match(logits, boxes, [target], LossConfig(encoder_repeats=3))
    decoder, encoder = matches.group == 0, matches.group == 1
    assert matches.box[decoder].bincount().tolist() == [1, 1]
    assert matches.box[encoder].bincount().tolist() == [3, 3]
    assert len(matches.query[encoder].unique()) == 6
    once = match(logits, boxes, [target], LossConfig())
    assert set(once.query[once.group == 1].tolist()) <= set(matches.query[encoder].tolist())
    many = match(logits, boxes, [target], LossConfig(encoder_repeats=9))
    assert (many.group == 1).sum() == 7  # all proposals there are
