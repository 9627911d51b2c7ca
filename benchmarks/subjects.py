"""What the benchmarks measure: models with random weights, images of noise, attention inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from tiny import TINY
from torch import Tensor

from dino_core.models.dino import Dino
from dino_core.models.geometry import reference_points
from dino_core.variants import find_variant

if TYPE_CHECKING:
    from dino_core.data.batching import Batch

HEADS, CHANNELS, POINTS = 8, 32, 4
STRIDES = (8, 16, 32, 64)
SPREAD_PX = 3  # spread of the sampled points around the query, in pixels of every level


def random_model(variant: str, tiny: bool, queries: int | None = None) -> Dino:
    """Return the variant, or a tiny model in its place, with random weights."""
    config = TINY if tiny else find_variant(variant).model
    torch.manual_seed(0)
    return Dino(replace(config, num_queries=queries or config.num_queries))


def pictures(batch: int, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return images of noise (B, 3, H, W) and their padding mask, which marks no padding."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, *size_hw, generator=generator)
    return images, torch.zeros(batch, *size_hw, dtype=torch.bool)


def training_batch(images: int, boxes: int, size_hw: tuple[int, int]) -> Batch:
    """Return a batch of noise images, each with boxes at random places."""
    from dino_core.data.batching import (
        Batch,
    )  # imported here because it would add to the memory of prediction
    from dino_core.targets import Target

    pixels, mask = pictures(images, size_hw)
    generator = torch.Generator().manual_seed(0)
    targets = []
    for _ in range(images):
        centres = torch.rand(boxes, 2, generator=generator) * 0.6 + 0.2
        sizes = torch.rand(boxes, 2, generator=generator) * 0.3 + 0.05
        labels = torch.randint(TINY.num_classes, (boxes,), generator=generator)
        targets.append(Target(labels, torch.cat([centres, sizes], dim=1)))
    return Batch(pixels, mask, targets, list(range(images)))


@dataclass(frozen=True)
class AttentionInputs:
    """The arguments of one call of `deformable_attention`."""

    value: Tensor
    levels: list[tuple[int, int]]
    references: Tensor
    offsets: Tensor
    logits: Tensor


def attention_inputs(
    size_hw: tuple[int, int], queries: int | None, batch: int, dtype: torch.dtype
) -> AttentionInputs:
    """Return inputs as for an image of that size; the points lie some pixels around the query.

    Args:
        size_hw: Height and width of the image.
        queries: Number of decoder queries, with boxes as references. None for the encoder, where
            every token is a query.
        batch: B.
        dtype: The dtype of value, offsets and logits.
    """
    levels = [(math.ceil(size_hw[0] / s), math.ceil(size_hw[1] / s)) for s in STRIDES]
    generator = torch.Generator().manual_seed(0)
    references = reference_points(levels, torch.ones(batch, len(levels), 2))
    tokens = references.shape[1]
    pixels = torch.randn(
        batch, queries or tokens, HEADS, len(levels), POINTS, 2, generator=generator
    )
    offsets = pixels * SPREAD_PX
    if queries is not None:
        chosen = torch.randint(tokens, (queries,), generator=generator)
        centres = references[:, chosen]
        boxes_wh = torch.rand(batch, queries, 1, 2, generator=generator) * 0.3 + 0.05
        boxes_wh = boxes_wh.expand_as(centres)
        references = torch.cat([centres, boxes_wh], dim=-1)
        sizes_wh = torch.tensor([(w, h) for h, w in levels], dtype=torch.float32)
        unit = boxes_wh * (0.5 / POINTS) * sizes_wh  # (B, Q, L, 2) pixels
        offsets = offsets / unit[:, :, None, :, None]
    return AttentionInputs(
        value=torch.randn(batch, tokens, HEADS, CHANNELS, generator=generator).to(dtype),
        levels=levels,
        references=references,
        offsets=offsets.to(dtype),
        logits=torch.randn(offsets.shape[:-1], generator=generator).to(dtype),
    )
