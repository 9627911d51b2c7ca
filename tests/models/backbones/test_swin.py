"""Swin against a slow computation of its own definition, and against timm where both must agree."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from dino_core.models.backbones.swin import Swin, SwinBlock, SwinSize, WindowPairs

Array = NDArray[np.float64]
TINY = SwinSize(8, (2, 2, 4, 2), (1, 2, 4, 8), 4)
ODD = SwinSize(8, (2, 3), (2, 4), 3)


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough for every part to matter: attention that chooses, norms that shift."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("relative_position_bias_table"):
            value = noise
        elif parameter.dim() == 1:
            value = 0.3 * noise + (1.0 if name.endswith("weight") else 0.0)
        else:
            value = noise / math.sqrt(math.prod(parameter.shape[1:]))
        parameter.data.copy_(value)
    return module.eval()


class Weights:
    """A module's parameters by the end of their names, as float64 arrays."""

    def __init__(self, module: nn.Module, prefix: str = "") -> None:
        self.arrays = {n: t.detach().double().numpy() for n, t in module.named_parameters()}
        self.prefix = prefix

    def __getitem__(self, name: str) -> Array:
        return self.arrays[self.prefix + name]

    def of(self, prefix: str) -> Weights:
        inner = Weights(nn.Module(), f"{self.prefix}{prefix}.")
        inner.arrays = self.arrays
        return inner

    def norm(self, name: str, x: Array) -> Array:
        centered = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
        return centered / scale * self[f"{name}.weight"] + self[f"{name}.bias"]

    def linear(self, name: str, x: Array) -> Array:
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]


def region(place: int, size: int, window: int, shift: int) -> int:
    """Which of the three bands of a shifted, padded axis a place lies in."""
    return 0 if place < size - window else 1 if place < size - shift else 2


def slow_attention(x: Array, weights: Weights, heads: int, window: int, shift: int) -> Array:
    """Window by window, token by token: (H, W, C) normed -> (H, W, C)."""
    height, width, channels = x.shape
    full_h, full_w = (math.ceil(n / window) * window for n in (height, width))
    padded = np.zeros((full_h, full_w, channels))
    padded[:height, :width] = x
    result = np.zeros_like(padded)
    table = weights["attn.relative_position_bias_table"]
    depth = channels // heads
    for top, left in product(range(0, full_h, window), range(0, full_w, window)):
        places = [(top + r, left + c) for r in range(window) for c in range(window)]
        # The token that stands at (r, c) of the shifted map is the one of (r + shift, c + shift).
        sources = [((r + shift) % full_h, (c + shift) % full_w) for r, c in places]
        regions = [
            (region(r, full_h, window, shift), region(c, full_w, window, shift)) for r, c in places
        ]
        tokens = np.stack([padded[s] for s in sources])
        q, k, v = np.split(weights.linear("attn.qkv", tokens), 3, axis=-1)
        out = np.zeros_like(tokens)
        for head in range(heads):
            part = slice(head * depth, (head + 1) * depth)
            for i, (row, column) in enumerate(places):
                logits = k[:, part] @ q[i, part] / math.sqrt(depth)
                for j, (other_row, other_column) in enumerate(places):
                    down, right = row - other_row, column - other_column
                    entry = (down + window - 1) * (2 * window - 1) + right + window - 1
                    logits[j] += table[entry, head]
                    if shift and regions[i] != regions[j]:
                        logits[j] -= 100
                share = np.exp(logits - logits.max())
                out[i, part] = share / share.sum() @ v[:, part]
        for source, value in zip(sources, weights.linear("attn.proj", out), strict=True):
            result[source] = value
    return result[:height, :width]


def slow_block(x: Array, weights: Weights, heads: int, window: int, shift: int) -> Array:
    x = x + slow_attention(weights.norm("norm1", x), weights, heads, window, shift)
    hidden = weights.linear("mlp.fc1", weights.norm("norm2", x))
    hidden = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
    return x + weights.linear("mlp.fc2", hidden)


def slow_merge(x: Array, weights: Weights) -> Array:
    height, width, channels = x.shape
    result = np.zeros((math.ceil(height / 2), math.ceil(width / 2), 4 * channels))
    for row, column in product(range(height), range(width)):
        block = row % 2 + 2 * (column % 2)
        result[row // 2, column // 2, block * channels : (block + 1) * channels] = x[row, column]
    return weights.norm("norm", result) @ weights["reduction.weight"].T


def slow_swin(
    image: Array, weights: Weights, size: SwinSize, out_indices: list[int]
) -> list[Array]:
    """(3, H, W) -> maps (C, H_l, W_l)."""
    _, height, width = image.shape
    rows, columns = math.ceil(height / 4), math.ceil(width / 4)
    padded = np.zeros((3, 4 * rows, 4 * columns))
    padded[:, :height, :width] = image
    kernel = weights["patch_embed.proj.weight"]
    x = np.zeros((rows, columns, size.width))
    for row, column in product(range(rows), range(columns)):
        patch = padded[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        x[row, column] = (kernel * patch).sum((1, 2, 3)) + weights["patch_embed.proj.bias"]
    x = weights.norm("patch_embed.norm", x)
    maps = []
    for stage, depth in enumerate(size.depths):
        for block in range(depth):
            shift = size.window // 2 if block % 2 else 0
            inner = weights.of(f"layers.{stage}.blocks.{block}")
            x = slow_block(x, inner, size.heads[stage], size.window, shift)
        if stage in out_indices:
            maps.append(weights.norm(f"norm{stage}", x).transpose(2, 0, 1))
        if stage < max(out_indices):
            x = slow_merge(x, weights.of(f"layers.{stage}.downsample"))
    return maps


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("window", "size_hw"), [(4, (9, 6)), (4, (8, 8)), (4, (3, 5)), (3, (7, 2))]
)
def test_block(window: int, size_hw: tuple[int, int], shifted: bool) -> None:
    """Whole windows, padded ones, and maps smaller than a window, where the shift stays."""
    block = randomized(SwinBlock(8, 2, window, shifted))
    x = torch.randn(1, *size_hw, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = block(x, WindowPairs.of(window, x))[0]
    theirs = slow_block(
        x[0].double().numpy(), Weights(block), 2, window, window // 2 if shifted else 0
    )
    np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "out_indices", "size_hw"),
    [(TINY, [1, 2, 3], (73, 50)), (TINY, [0, 1, 2, 3], (33, 100)), (ODD, [0, 1], (26, 13))],
)
def test_whole(size: SwinSize, out_indices: list[int], size_hw: tuple[int, int]) -> None:
    """No side is a multiple of anything, and the last maps are smaller than a window."""
    model = randomized(Swin(size, out_indices))
    image = torch.randn(3, *size_hw, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        maps = model(image[None])
    expected = slow_swin(image.double().numpy(), Weights(model), size, out_indices)
    assert [tuple(m.shape[1:]) for m in maps] == [m.shape for m in expected]
    for ours, theirs in zip(maps, expected, strict=True):
        np.testing.assert_allclose(ours[0].numpy(), theirs, atol=1e-4, rtol=0)


def test_a_batch_gives_what_its_images_give() -> None:
    model = randomized(Swin(TINY, (1, 2, 3)))
    images = torch.randn(3, 3, 54, 71, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        together = model(images)
        for index in range(3):
            for whole, alone in zip(together, model(images[index : index + 1]), strict=True):
                torch.testing.assert_close(whole[index], alone[0], atol=2e-5, rtol=0)


def test_zeros_up_to_whole_patches_change_nothing() -> None:
    """The network adds them itself; but more of them become tokens, which are not masked."""
    model = randomized(Swin(TINY, (1, 2, 3)))
    image = torch.randn(1, 3, 61, 62, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        bare = model(image)
        filled = model(functional.pad(image, (0, 2, 0, 3)))
        wider = model(functional.pad(image, (0, 66, 0, 0)))
    for a, b in zip(bare, filled, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    first = wider[0][..., : bare[0].shape[-1]]
    assert (first - bare[0]).abs().max() > 1e-2


def test_timm_agrees_where_all_windows_are_whole() -> None:
    """128 pixels are 32 tokens, so that even the last map is one window of 4; timm would not shift
    there, so its last stage is told to."""
    ours = randomized(Swin(TINY, (0, 1, 2, 3)))
    theirs = timm.models.swin_transformer.SwinTransformer(
        img_size=128, embed_dim=8, depths=TINY.depths, num_heads=TINY.heads, window_size=4,
        num_classes=0, always_partition=True,
    ).eval()  # fmt: skip
    state = {}
    for name, tensor in ours.state_dict().items():
        stage, _, rest = name.removeprefix("layers.").partition(".")
        if rest.startswith("downsample"):  # timm merges at the start of the next stage
            name = f"layers.{int(stage) + 1}.{rest}"
        if not name.startswith("norm"):
            state[name] = tensor
    report = theirs.load_state_dict(state, strict=False)
    assert not report.unexpected_keys
    assert {n.partition(".")[0] for n in report.missing_keys} <= {"norm"}
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        x = theirs.patch_embed(images)
        for index, (stage, map_) in enumerate(zip(theirs.layers, ours(images), strict=True)):
            x = stage(x)
            normed = ours.get_submodule(f"norm{index}")(x).permute(0, 3, 1, 2)
            torch.testing.assert_close(map_, normed, atol=2e-5, rtol=0)


def test_gradients_do_not_depend_on_recomputation() -> None:
    results = []
    for recompute in (False, True):
        model = randomized(Swin(SwinSize(8, (2,), (2,), 4), (0,), drop_path=0.5)).train()
        for block in model.modules():
            if isinstance(block, SwinBlock):
                block.gradient_checkpointing = recompute
        torch.manual_seed(0)
        model(torch.ones(4, 3, 30, 22).cumsum(-1) / 22)[0].square().sum().backward()
        results.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert results[0].abs().max() > 0
    torch.testing.assert_close(results[0], results[1])


def test_stochastic_depth_only_in_training() -> None:
    model = randomized(Swin(SwinSize(8, (2,), (2,), 4), (0,), drop_path=0.5))
    images = torch.ones(16, 3, 16, 16)
    with torch.no_grad():
        [calm] = model(images)
        torch.manual_seed(0)
        [shaken] = model.train()(images)
    torch.testing.assert_close(calm, calm[:1].expand_as(calm))
    # The first block's rate is 0, the second's 0.5 for attention and MLP each.
    assert len(shaken.flatten(1).unique(dim=0)) == 4


def test_autocast_is_near_float32() -> None:
    model = randomized(Swin(TINY, (3,)))
    images = torch.randn(1, 3, 70, 90, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        [exact] = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            [rough] = model(images)
    assert torch.cosine_similarity(exact.flatten(), rough.float().flatten(), dim=0) > 0.99


def test_blocks_compile_for_all_sizes() -> None:
    block = randomized(SwinBlock(8, 2, 4, shifted=True))
    compiled = torch.compile(block, dynamic=True, backend="eager")
    with torch.no_grad():
        for size_hw in ((9, 14), (3, 5)):
            x = torch.randn(1, *size_hw, 8)
            pairs = WindowPairs.of(4, x)
            torch.testing.assert_close(compiled(x, pairs), block(x, pairs))
