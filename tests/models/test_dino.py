from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from factories import tiny_config

from dino_core.config import LossConfig
from dino_core.losses.criterion import Criterion
from dino_core.models.dino import Dino
from dino_core.models.geometry import (
    Geometry,
    anchor_proposals,
    level_mask,
    reference_points,
)
from dino_core.targets import Target
from dino_core.variants import VARIANTS


@pytest.fixture(scope="module")
def model() -> Dino:
    torch.manual_seed(0)
    return Dino(tiny_config()).eval()


def inputs(height: int = 64, width: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, height, width, generator=generator)
    return images, torch.zeros(2, height, width, dtype=torch.bool)


TARGETS = [
    Target(torch.tensor([0, 1]), torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.4]])),
    Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)),
]


def test_shapes(model: Dino) -> None:
    output = model(*inputs())
    assert output.logits.shape == (2, 20, 2)
    assert output.boxes_cxcywh.shape == (2, 20, 4)
    assert ((output.boxes_cxcywh >= 0) & (output.boxes_cxcywh <= 1)).all()
    assert output.denoising is None


def test_fewer_tokens_than_queries(model: Dino) -> None:
    """16 x 16 pixels give 5 tokens, the official code needs 20 of them."""
    images, mask = inputs(16, 16)
    output = model(images, mask)
    assert output.logits.shape[1] == output.encoder.token_indices.shape[1] < 20


def test_denoising_queries_do_not_change_the_matching_ones(model: Dino) -> None:
    """Matching queries may not see denoising ones, so their predictions stay."""
    plain = model(*inputs(), all_layers=True)
    noised = model(*inputs(), TARGETS, torch.Generator().manual_seed(0), all_layers=True)
    torch.testing.assert_close(noised.layer_logits, plain.layer_logits, atol=1e-5, rtol=0)
    assert noised.denoising is not None
    assert noised.denoising.logits.shape[2] == noised.denoising.layout.num_queries > 0


def test_no_denoising_queries_where_their_number_is_zero() -> None:
    """The loss is then that of the matching queries, and still reaches every parameter."""
    config = replace(tiny_config(), dn_number=0)
    torch.manual_seed(0)
    model = Dino(config).train()
    output = model(*inputs(), TARGETS)
    assert output.denoising is None
    assert output.logits.shape == (2, 20, 2)
    losses = Criterion(LossConfig())(output, TARGETS)
    torch.testing.assert_close(losses.total, losses.matching.weighted(LossConfig()))
    losses.total.backward()
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not without


def test_prediction_under_autocast_keeps_scores_and_boxes_in_float32(model: Dino) -> None:
    """Only what is done for every token is rounded; in training the decoder is too."""
    exact = model(*inputs())
    memory, forced = _memory(model), exact.encoder.token_indices
    with torch.autocast("cpu", torch.bfloat16):
        chosen = model.query_selection(*memory)
        output = model(*inputs(), forced_tokens=forced)
    torch.testing.assert_close(chosen.logits, model.query_selection(*memory).logits)
    rounded = output.logits == output.logits.bfloat16().float()
    assert output.logits.dtype == torch.float32 and rounded.float().mean() < 0.1
    torch.testing.assert_close(output.logits, exact.logits, atol=0.05, rtol=0)
    torch.testing.assert_close(output.boxes_cxcywh, exact.boxes_cxcywh, atol=0.005, rtol=0)


def _memory(model: Dino) -> tuple[torch.Tensor, Geometry]:
    _, mask = inputs()
    geometry = Geometry.of(mask, [(8, 12), (4, 6)], model.config)
    return torch.randn(2, 120, 32, generator=torch.Generator().manual_seed(2)), geometry


def test_an_image_alone_equals_the_image_in_a_batch(model: Dino) -> None:
    images, mask = inputs()
    together, alone = model(images, mask), model(images[1:], mask[1:])
    torch.testing.assert_close(together.logits[1:], alone.logits, atol=1e-5, rtol=0)


def test_pixels_under_padding_do_not_reach_the_transformer(model: Dino) -> None:
    """A backbone map cell sees beyond its pixels; whole padded cells must not matter."""
    _, mask = inputs(64, 128)
    mask[:, :, 64:] = True
    maps = [torch.randn(2, 32, 8, 16), torch.randn(2, 32, 4, 8)]
    tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
    geometry = Geometry.of(mask, [(8, 16), (4, 8)], model.config)
    padded = geometry.token_mask
    assert padded is not None

    def encode(fill: float) -> torch.Tensor:
        filled = tokens.masked_fill(padded[..., None], fill)
        return model.encoder(filled, geometry.positions, geometry)[~padded]

    torch.testing.assert_close(encode(0.0), encode(100.0))


def test_training_step_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = Dino(tiny_config()).train()
    output = model(*inputs(), TARGETS, torch.Generator().manual_seed(0))
    Criterion(LossConfig())(output, TARGETS).total.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_batch_without_boxes_trains_as_background() -> None:
    torch.manual_seed(0)
    model = Dino(tiny_config()).train()
    empty = [TARGETS[1], TARGETS[1]]
    output = model(*inputs(), empty, torch.Generator().manual_seed(0))
    losses = Criterion(LossConfig())(output, empty)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert losses.matching.bbox.abs().sum() == 0
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = Dino(tiny_config()).train()
        model.set_gradient_checkpointing(enabled)
        output = model(*inputs(), TARGETS, torch.Generator().manual_seed(0))
        Criterion(LossConfig())(output, TARGETS).total.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_untied_heads_have_one_a_layer() -> None:
    from dataclasses import replace

    config = replace(tiny_config(), tied_heads=False)
    model = Dino(config)
    assert len(model.decoder.class_embed) == len(model.decoder.bbox_embed) == 2
    assert model(*inputs()).logits.shape == (2, 20, 2)


def test_bf16_autocast_keeps_predictions_in_fp32(model: Dino) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = model(*inputs())
    assert output.logits.dtype == output.boxes_cxcywh.dtype == torch.float32


@torch.inference_mode()
def test_geometry_of_the_last_batch_is_not_mixed_up(model: Dino) -> None:
    """Each of these differs from the one before it in padding, size or batch."""
    images, mask = inputs()
    unpadded = torch.zeros_like(mask)
    cases = [(images, mask), (images, unpadded), (images, mask), (images[1:], mask[1:])]
    cases += [(images[..., :32], unpadded[..., :32]), (images, unpadded)]
    for each_images, each_mask in cases:
        fresh = copy.deepcopy(model)
        fresh._last_geometry = None
        expected = fresh(each_images, each_mask)
        for _ in range(2):
            found = model(each_images, each_mask)
            torch.testing.assert_close(found.logits, expected.logits, atol=1e-6, rtol=0)
            torch.testing.assert_close(found.boxes_cxcywh, expected.boxes_cxcywh)


class TestGeometry:
    def test_reference_points_without_padding_are_pixel_centers(self) -> None:
        points = reference_points([(2, 4)], torch.ones(1, 1, 2))
        assert points.shape == (1, 8, 1, 2)
        assert points[0, 0, 0].tolist() == [0.125, 0.25]
        assert points[0, 7, 0].tolist() == [0.875, 0.75]

    def test_reference_points_scale_to_the_padded_level(self) -> None:
        """Half of the width is valid: the last valid center of 4 columns is column 1."""
        points = reference_points([(2, 4)], torch.tensor([[[0.5, 1.0]]]))
        assert points[0, 1, 0].tolist() == pytest.approx([0.375, 0.25])

    def test_proposals(self) -> None:
        mask = torch.zeros(1, 4, 4, dtype=torch.bool)
        mask[:, :, 2:] = True
        logits = anchor_proposals([mask, mask[:, ::2, ::2]])
        boxes = logits.sigmoid()
        assert boxes[0, 0].tolist() == pytest.approx([0.25, 0.125, 0.05, 0.05])
        assert boxes[0, 16].tolist() == pytest.approx([0.5, 0.25, 0.1, 0.1])
        assert logits[0, 2].isinf().all()

    def test_level_mask_is_nearest(self) -> None:
        mask = torch.zeros(1, 5, 5, dtype=torch.bool)
        mask[:, 3:] = True
        assert level_mask(mask, 2, 2)[0].tolist() == [[False, False], [False, False]]
        assert level_mask(mask, 5, 5).equal(mask)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("dino-r50-4scale", 46_893_182),
        ("dino-r50-5scale", 47_255_806),
        ("dino-swinl-4scale", 217_230_066),
    ],
)
def test_published_parameter_count(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = Dino(VARIANTS[name].model)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_default_model_is_small() -> None:
    with torch.device("meta"):
        model = Dino(VARIANTS["dino-nano"].model)
    assert sum(p.numel() for p in model.parameters()) <= 8_000_000
