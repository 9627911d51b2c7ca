"""Swin Transformer (arXiv 2103.14030) as feature maps, as detectors compute it.

Parameters have the names of the official detection backbone. timm has these networks too and gives
the same numbers where every map is a multiple of the window (tests). For other sizes it does not:
it shifts before it pads, shrinks windows to small maps, masks for one fixed size, and has no norms
on the maps. Published DINO weights depend on all four (ALGORITHM 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dino_core.models.backbones.body import names_of
from dino_core.models.backbones.stochastic_depth import StochasticDepth, rates
from dino_core.models.feed_forward import GeluMlp
from dino_core.models.recompute import recomputed
from dino_core.ops.linear import Linear

_PATCH: Final = 4
# Minus infinity would be exact, but the published weights were trained with this number.
_BLOCKED: Final = -100.0  # added to the logits between regions that the shift brings together
_INIT_STD: Final = 0.02


@dataclass(frozen=True)
class SwinSize:
    """What distinguishes one Swin from another.

    Attributes:
        width: Channels of the first stage; each later stage has twice as many.
        depths: Number of blocks of each stage.
        heads: Number of attention heads of each stage.
        window: Side of a window in tokens.
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int


_BASE: Final = ((2, 2, 18, 2), (4, 8, 16, 32))
_LARGE: Final = ((2, 2, 18, 2), (6, 12, 24, 48))
SWIN_SIZES: Final = {
    "swin_tiny_patch4_window7_224": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin_small_patch4_window7_224": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "swin_base_patch4_window7_224": SwinSize(128, *_BASE, 7),
    "swin_base_patch4_window12_384": SwinSize(128, *_BASE, 12),
    "swin_large_patch4_window7_224": SwinSize(192, *_LARGE, 7),
    "swin_large_patch4_window12_384": SwinSize(192, *_LARGE, 12),
}
"""By timm's names."""


def swin(name: str, out_indices: Sequence[int], drop_path: float) -> Swin:
    """The Swin of that name in `SWIN_SIZES`."""
    return Swin(SWIN_SIZES[name], out_indices, drop_path)


@dataclass(frozen=True)
class WindowPairs:
    """What depends on the positions of two of the N tokens of a window; each (N, N).

    A shift by `window // 2` moves the map's first rows behind its last ones, and its first columns
    likewise. In the windows at the right and bottom edges these tokens and the rest must not attend
    to each other. They are kept apart by a finite number, as in the official code.

    Attributes:
        relative: int64, the row of the bias table.
        right: Added to the logits in shifted windows at the right edge.
        bottom: Added to the logits in shifted windows at the bottom edge.
        corner: Added to the logits in the one window at both edges.
    """

    relative: Tensor
    right: Tensor
    bottom: Tensor
    corner: Tensor

    @staticmethod
    def of(window: int, like: Tensor) -> WindowPairs:
        """The pairs of a window with sides of `window` tokens; dtype and device as `like` has."""
        # Both offsets are in [-(window - 1), window - 1], and are shifted to begin at 0. Together
        # they give a row of a table with (2 * window - 1)^2 entries.
        place = torch.arange(window, device=like.device)
        row, column = place.repeat_interleave(window), place.repeat(window)  # (N,)
        down, across = (line[:, None] - line + window - 1 for line in (row, column))
        # After the roll, the last `window // 2` rows and columns of an edge window come from the
        # opposite side of the map.
        brought = [line >= window - window // 2 for line in (column, row)]
        right, bottom = (part[:, None] != part for part in brought)
        masks = [apart.to(like.dtype) * _BLOCKED for apart in (right, bottom, right | bottom)]
        return WindowPairs(down * (2 * window - 1) + across, *masks)


class Swin(nn.Module):
    """The maps `out_indices` of strides 4, 8, 16, 32, each with a norm of its own; a `Body`.

    The batch's padding is not masked: its zeros are pixels like others, as in the official code.
    """

    gives_channels_last = False

    def __init__(self, size: SwinSize, out_indices: Sequence[int], drop_path: float = 0.0) -> None:
        """Stages beyond the last map are left out.

        Args:
            size: Width, depths, heads and window of the network.
            out_indices: Which of the four maps to give.
            drop_path: Probability, in training, that the last block's branches are left out.
        """
        super().__init__()
        count = len(size.depths)
        self.channels = tuple(size.width * 2**i for i in range(count))
        self.reductions = tuple(_PATCH * 2**i for i in range(count))
        self.stage_ends = tuple(f"layers.{i}" for i in range(count))
        self.out_indices = tuple(out_indices)
        self.output_norms = tuple(f"norm{i}" for i in self.out_indices)
        self.window = size.window
        self.patch_embed = _PatchEmbed(size.width)
        self.layers = nn.ModuleList()
        last = max(self.out_indices)
        for index, stage_rates in enumerate(rates(drop_path, size.depths)[: last + 1]):
            width, heads = self.channels[index], size.heads[index]
            self.layers.append(_Stage(width, heads, size.window, stage_rates, merge=index < last))
        for index, name in zip(self.out_indices, self.output_norms, strict=True):
            self.add_module(name, nn.LayerNorm(self.channels[index]))
        # The bias tables have been initialized by their own modules; linear layers get their values
        # here.
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.recomputable_blocks = names_of(self, SwinBlock)
        # The sizes of Swin's maps, rounded up at each stage, are too much for the compiler's
        # algebra of unknown sizes: four minutes were not enough to trace the whole of a tiny one.
        self.parts_to_compile = self.recomputable_blocks

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps (B, C_l, ceil(H / stride), ceil(W / stride)), finest first."""
        x = self.patch_embed(images)
        pairs = WindowPairs.of(self.window, x)
        maps = []
        for index, stage in enumerate(self.layers):
            out, x = stage(x, pairs)
            if index in self.out_indices:
                normed: Tensor = self.get_submodule(f"norm{index}")(out)
                maps.append(normed.permute(0, 3, 1, 2))
        return maps


class _PatchEmbed(nn.Module):
    """Turns each 4x4 pixels into one token; zeros fill the last ones at the bottom and right."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, _PATCH, _PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, ceil(H / 4), ceil(W / 4), C)."""
        height, width = images.shape[-2:]
        # -n % p is the number of zeros up to the next multiple of p.
        images = functional.pad(images, (0, -width % _PATCH, 0, -height % _PATCH))
        out: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))  # (B, H / 4, W / 4, C)
        return out


class _Stage(nn.Module):
    """Blocks at one resolution, and the merging that leads to the next resolution."""

    def __init__(
        self, width: int, heads: int, window: int, drop_rates: Sequence[float], merge: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, window, shifted=index % 2 == 1, drop_path=rate)
            for index, rate in enumerate(drop_rates)
        )
        self.downsample = _PatchMerging(width) if merge else None

    def forward(self, x: Tensor, pairs: WindowPairs) -> tuple[Tensor, Tensor]:
        """(B, H, W, C) -> the same shape, and (B, ceil(H / 2), ceil(W / 2), 2C) if there is more.

        Both come from one call, since a sharded stage has its weights only during that call.
        """
        for block in self.blocks:
            x = block(x, pairs)
        return x, x if self.downsample is None else self.downsample(x)


class SwinBlock(nn.Module):
    """Attention inside windows and an MLP, each applied to the normed input and added to it.

    Attributes:
        gradient_checkpointing: Recompute activations in the backward pass instead of keeping them.
    """

    def __init__(
        self, width: int, heads: int, window: int, shifted: bool, drop_path: float = 0.0
    ) -> None:
        """With `shifted`, windows start half a window further down and right than usual."""
        super().__init__()
        self.window = window
        self.shift = window // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(width)
        self.attn = _WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = GeluMlp(width)
        self.drop_path = StochasticDepth(drop_path)
        self.gradient_checkpointing = False

    def forward(self, x: Tensor, pairs: WindowPairs) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        recompute = self.gradient_checkpointing
        # The draws of the stochastic depth stay outside of what is recomputed.
        x = x + self.drop_path(recomputed(self._attend, x, pairs, enabled=recompute))
        return cast(Tensor, x + self.drop_path(recomputed(self._transform, x, enabled=recompute)))

    def _transform(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, pairs: WindowPairs) -> Tensor:
        """Window attention over the map, which zeros fill up to whole windows.

        These zeros are tokens like others, and windows never shrink: both as in the official code.
        """
        height, width = x.shape[1:3]
        side, shift = self.window, self.shift
        # Padded after the norm, so the padding is exactly zero. A padded token before the norm
        # would become the norm's bias (ALGORITHM 5).
        x = functional.pad(self.norm1(x), (0, 0, 0, -width % side, 0, -height % side))
        if shift:
            # A shifted block connects tokens across the borders of the unshifted one. Rolling keeps
            # the number of windows, at the price that edge windows mix opposite sides of the map.
            x = x.roll((-shift, -shift), (1, 2))
        windows = _windows(x, side)  # (B, rows, columns, window^2, C)
        bias = self.attn.bias(pairs)
        windows = self._attend_shifted(windows, bias, pairs) if shift else self.attn(windows, bias)
        x = _map(windows, side)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return x[:, :height, :width]

    def _attend_shifted(self, windows: Tensor, bias: Tensor, pairs: WindowPairs) -> Tensor:
        """Attention where the last row and column hold what the shift moved from the other side.

        Only the windows at these edges get masks: one mask for all windows would be the largest
        tensor of the network.
        """
        attn = self.attn
        right, bottom, corner = (bias + mask for mask in (pairs.right, pairs.bottom, pairs.corner))
        # Windows that are not at the right or bottom edge hold neighbors only and need no mask.
        upper = [attn(windows[:, :-1, :-1], bias), attn(windows[:, :-1, -1:], right)]
        lower = [attn(windows[:, -1:, :-1], bottom), attn(windows[:, -1:, -1:], corner)]
        return torch.cat([torch.cat(upper, dim=2), torch.cat(lower, dim=2)], dim=1)


class _WindowAttention(nn.Module):
    """Self-attention inside each window, with a learned bias per head and relative position."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=_INIT_STD)

    def bias(self, pairs: WindowPairs) -> Tensor:
        """(M, N, N), what is added to the logits of each pair of tokens in each head."""
        return self.relative_position_bias_table[pairs.relative].permute(2, 0, 1).contiguous()

    def forward(self, windows: Tensor, bias: Tensor) -> Tensor:
        """Attend.

        Args:
            windows: (..., N, C), windows of N tokens.
            bias: (M, N, N), added to the logits of each head.

        Returns: (..., N, C).
        """
        # A map of one row or column of windows has none of some of the four kinds.
        if windows.numel() == 0:
            return windows
        tokens, width = windows.shape[-2:]
        qkv = self.qkv(windows).view(-1, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (windows, M, N, D) each
        # The relative position bias is added to the logits through the mask argument, for all
        # windows.
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return cast(Tensor, self.proj(out.transpose(1, 2).reshape(windows.shape)))


class _PatchMerging(nn.Module):
    """Merges each 2x2 tokens into one; a row or column of zeros is added to odd sizes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2C)."""
        x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        batch, height, width, channels = x.shape
        x = x.view(batch, height // 2, 2, width // 2, 2, channels)  # (B, H / 2, 2, W / 2, 2, C)
        # The four tokens follow in the order (row, column) (0, 0), (1, 0), (0, 1), (1, 1).
        # The official code concatenates them in this order, and the norm and reduction were trained
        # on it.
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)
        return cast(Tensor, self.reduction(self.norm(x)))


def _windows(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C), multiples of `side` -> (B, H / side, W / side, side^2, C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels)
    return x.transpose(2, 3).flatten(3, 4)  # both sides of a window next to each other


def _map(windows: Tensor, side: int) -> Tensor:
    """The inverse of `_windows`."""
    batch, rows, columns, _, channels = windows.shape
    x = windows.view(batch, rows, columns, side, side, channels).transpose(2, 3)
    return x.reshape(batch, rows * side, columns * side, channels)
