"""All that depends only on sizes and padding: masks, positions, references, proposals.

A prediction with the same shape and padding as the one before reuses all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dino_core.config import ModelConfig
from dino_core.models.position import image_position_encoding

BASE_SIZE = 0.05  # proposal side on level 0; doubles with each level (ALGORITHM 8)
BORDER = 0.01  # proposals with a coordinate or size outside (BORDER, 1 - BORDER) are invalid


@dataclass(frozen=True)
class Geometry:
    """Positions and masks of the S tokens of L levels of one batch.

    Attributes:
        spatial_shapes: (H, W) of each level.
        token_mask: (B, S) bool, True = padding; None if nothing is padded.
        valid_ratios: (B, L, 2) share of each level's width and height that is not padding.
        positions: (B, S, hidden) sine encodings.
        levels: (S,) int64 level of each token.
        references: (B, S, L, 2) each token's own position, from `reference_points`.
        proposals: (B, S, 4) boxes from `anchor_proposals`.
    """

    spatial_shapes: list[tuple[int, int]]
    token_mask: Tensor | None
    valid_ratios: Tensor
    positions: Tensor
    levels: Tensor
    references: Tensor
    proposals: Tensor

    @staticmethod
    def of(
        padding_mask: Tensor, spatial_shapes: list[tuple[int, int]], config: ModelConfig
    ) -> Geometry:
        """Compute the geometry of a batch.

        Args:
            padding_mask: (B, H, W) bool of the images, True = padding.
            spatial_shapes: (H, W) of each level.
            config: Supplies the parameters of the position encoding.
        """
        masks = [level_mask(padding_mask, height, width) for height, width in spatial_shapes]
        ratios = torch.stack([valid_ratio(mask) for mask in masks], dim=1)
        positions = [
            image_position_encoding(
                mask, config.hidden_dim, config.position_temperature, config.position_offset
            ).flatten(1, 2)  # (B, H * W, hidden)
            for mask in masks
        ]
        levels = torch.cat(
            [
                torch.full((height * width,), level, device=padding_mask.device)
                for level, (height, width) in enumerate(spatial_shapes)
            ]
        )
        return Geometry(
            spatial_shapes=spatial_shapes,
            token_mask=torch.cat([mask.flatten(1) for mask in masks], dim=1),
            valid_ratios=ratios,
            positions=torch.cat(positions, dim=1),
            levels=levels,
            references=reference_points(spatial_shapes, ratios),
            proposals=anchor_proposals(masks),
        )


def level_mask(padding_mask: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W) bool -> (B, height, width) bool by nearest interpolation (ALGORITHM 3)."""
    # Each level's mask comes from the full image's mask and not from the level before it. The
    # conversion to bool is exact because nearest interpolation gives only 0 and 1.
    resized = functional.interpolate(padding_mask[:, None].float(), size=(height, width))
    return resized[:, 0].to(torch.bool)


def valid_ratio(mask: Tensor) -> Tensor:
    """The share of width and height that is not padding, from the first row and column.

    Args:
        mask: (B, H, W) bool, True = padding, at the bottom and right.

    Returns: (B, 2) float32.
    """
    height, width = mask.shape[-2:]
    # The padding is a rectangle at the bottom and right, so the first row and column determine it.
    # The official code looks at nothing else either (ALGORITHM 7).
    valid_w = (~mask[:, 0, :]).sum(dim=1).to(torch.float32) / width
    valid_h = (~mask[:, :, 0]).sum(dim=1).to(torch.float32) / height
    return torch.stack([valid_w, valid_h], dim=-1)


def reference_points(spatial_shapes: Sequence[tuple[int, int]], valid_ratios: Tensor) -> Tensor:
    """The center of each token's own pixel, as a position in every padded level.

    Args:
        spatial_shapes: (H, W) of each level.
        valid_ratios: (B, L, 2) from `valid_ratio`.

    Returns: (B, S, L, 2) xy, in [0, 1] of each padded level.
    """
    device = valid_ratios.device
    per_level = []
    for level, (height, width) in enumerate(spatial_shapes):
        y = torch.arange(height, device=device, dtype=torch.float32) + 0.5
        x = torch.arange(width, device=device, dtype=torch.float32) + 0.5
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
        # One division by the valid size in pixels, as in the official code: two divisions would
        # differ in the last bits, which decide between near-ties of the query selection.
        size_wh = torch.tensor([width, height], device=device, dtype=torch.float32)
        per_level.append(grid.reshape(1, -1, 2) / (valid_ratios[:, None, level] * size_wh))
    # Dividing by the valid size of the token's own level gives its place in the image. Multiplying
    # by the ratio of each other level gives the same place in that level with its padding.
    return torch.cat(per_level, dim=1)[:, :, None] * valid_ratios[:, None]  # (B, S, L, 2)


def anchor_proposals(level_masks: Sequence[Tensor]) -> Tensor:
    """One square box per token, centered on it, relative to the valid area (ALGORITHM 8).

    Args:
        level_masks: L masks (B, H_l, W_l) bool, True = padding.

    Returns: (B, S, 4) cxcywh before the sigmoid; +inf where padded or near the border.
    """
    per_level = []
    for level, mask in enumerate(level_masks):
        batch, height, width = mask.shape
        valid_h = (~mask[:, :, 0]).sum(dim=1).to(torch.float32)
        valid_w = (~mask[:, 0, :]).sum(dim=1).to(torch.float32)
        y = torch.arange(height, device=mask.device, dtype=torch.float32) + 0.5
        x = torch.arange(width, device=mask.device, dtype=torch.float32) + 0.5
        cy = (y[None, :, None] / valid_h[:, None, None]).expand(batch, height, width)
        cx = (x[None, None, :] / valid_w[:, None, None]).expand(batch, height, width)
        # A prior of 5 % of the image on the finest level, twice that on each coarser one, whatever
        # the shape of the image: a proposal is square only in relative units.
        size = torch.full_like(cx, BASE_SIZE * 2.0**level)
        boxes = torch.stack([cx, cy, size, size], dim=-1)  # (B, H, W, 4)
        # On the coarsest levels the prior itself may exceed the limit: 0.05 * 2**5 > 0.99, so that
        # a sixth level would have no valid proposal.
        valid = ((boxes > BORDER) & (boxes < 1 - BORDER)).all(dim=-1) & ~mask
        # The logarithm of an invalid box may be NaN, which the fill below replaces.
        logit = torch.log(boxes / (1 - boxes))
        per_level.append(logit.masked_fill(~valid[..., None], float("inf")).flatten(1, 2))
    return torch.cat(per_level, dim=1)
