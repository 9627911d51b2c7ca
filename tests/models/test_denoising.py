from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import recipe
from torch import nn

from dino_core.config import ModelConfig
from dino_core.models.denoising import (
    DenoisingLayout,
    NoiseDraws,
    attention_mask,
    denoising_layout,
    denoising_queries,
    draw_noise,
)
from dino_core.targets import Target

GOLDEN = Path(__file__).parents[1] / "golden"
EDGE = json.loads((GOLDEN / "golden_cdn_edge.json").read_text())


@pytest.fixture
def label_embedding() -> nn.Embedding:
    embedding = nn.Embedding(92, 256)
    with torch.no_grad():
        embedding.weight.copy_(recipe.weight("label_enc.weight", (92, 256)))
    return embedding


def test_queries_from_the_official_draws(label_embedding: nn.Embedding) -> None:
    with np.load(GOLDEN / "golden_cdn.npz") as file:
        theirs = dict(file)
    names = ("draw0_rand_like", "draw1_randint_like", "draw2_randint_like", "draw3_rand_like")
    noise = NoiseDraws(*(torch.from_numpy(theirs[name]) for name in names))
    ours = denoising_queries(recipe.targets(), label_embedding, ModelConfig(), draws=noise)
    assert ours.layout.num_queries == theirs["pad_size"]
    assert ours.layout.groups == theirs["num_dn_group"]
    assert np.array_equal(ours.labels.numpy(), theirs["noised_labels"])
    assert np.array_equal(ours.content.detach().numpy(), theirs["input_query_label"])
    # The same additions in another order: a few units in the last place of a logit near 7.
    np.testing.assert_allclose(ours.anchors_logit, theirs["input_query_bbox"], atol=1e-5)
    mask = attention_mask(ours.layout, 900, torch.device("cpu")).numpy()
    assert np.array_equal(np.packbits(mask, axis=1), theirs["attn_mask_packed"])


def test_draws_repeat_the_official_order_of_a_seed() -> None:
    with np.load(GOLDEN / "golden_cdn.npz") as file:
        theirs = dict(file)
    generator = torch.Generator().manual_seed(0)
    ours = draw_noise(8, DenoisingLayout(groups=20, slots=5), ModelConfig(), generator)
    assert np.array_equal(ours.label_chance.numpy(), theirs["draw0_rand_like"])
    assert np.array_equal(ours.new_labels.numpy(), theirs["draw1_randint_like"])
    assert np.array_equal(ours.box_sign.numpy(), theirs["draw2_randint_like"])
    assert np.array_equal(ours.box_size.numpy(), theirs["draw3_rand_like"])


# Below 50 the official code forgets to divide; ours divides (ALGORITHM, "Do better").
@pytest.mark.parametrize("name", [n for n in EDGE if int(n.rsplit("=", 1)[1]) >= 50])
def test_layout_for_odd_counts(name: str, label_embedding: nn.Embedding) -> None:
    expected = EDGE[name]
    counts = [int(n) for n in name[name.index("(") + 1 : name.index(")")].split(",") if n.strip()]
    dn_number = int(name.rsplit("=", 1)[1])
    layout = denoising_layout(counts, dn_number)
    assert (layout.num_queries, layout.groups) == (expected["pad_size"], expected["num_dn_group"])
    mask = attention_mask(layout, 900, torch.device("cpu"))
    assert int(mask.sum()) == expected["mask_true"]
    targets = [Target(torch.zeros(n, dtype=torch.int64), torch.full((n, 4), 0.5)) for n in counts]
    config = replace(ModelConfig(), dn_number=dn_number)
    queries = denoising_queries(targets, label_embedding, config)
    assert list(queries.content.shape) == expected["label_shape"]


@pytest.mark.parametrize(("dn_number", "groups"), [(1, 1), (10, 2), (49, 9)])
def test_small_numbers_are_divided_too(dn_number: int, groups: int) -> None:
    assert denoising_layout([3, 5], dn_number) == DenoisingLayout(groups, 5)


def test_positives_stay_nearer_than_negatives(label_embedding: nn.Embedding) -> None:
    """A positive corner moves by less than half a side, a negative one by at least that."""
    target = Target(torch.tensor([7]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]))
    config = replace(ModelConfig(), dn_number=50)
    generator = torch.Generator().manual_seed(3)
    queries = denoising_queries([target], label_embedding, config, generator)
    boxes = queries.anchors_logit[0].sigmoid()  # slots = 1: positive, negative, positive, ...
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    shift = (corners - torch.tensor([0.4, 0.4, 0.6, 0.6])).abs()
    whole = (boxes[:, 2:] > 2e-3).all(1)  # the logit's clamp hides sides that collapsed
    assert shift[0::2].max() < 0.1 + 1e-5
    assert shift[1::2][whole[1::2]].min() > 0.1 - 1e-5


def test_same_generator_same_noise(label_embedding: nn.Embedding) -> None:
    def labels(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return denoising_queries(
            recipe.targets(), label_embedding, ModelConfig(), generator
        ).anchors_logit

    assert torch.equal(labels(5), labels(5))
    assert not torch.equal(labels(5), labels(6))
