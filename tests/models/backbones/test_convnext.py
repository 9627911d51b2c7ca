"""ConvNeXt against timm's blocks, and its maps' norms against their own formula."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from dino_core.models.backbones.convnext import ConvNext, ConvNextBlock, ConvNextSize

TINY = ConvNextSize(8, (1, 2, 1, 1))


def randomized(out_indices: tuple[int, ...]) -> ConvNext:
    model = ConvNext(TINY, out_indices)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # a layer scale of 1e-6 would hide the blocks
        scale = 0.3 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
        parameter.data.normal_(0, scale, generator=generator)
    return model.eval()


def normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A layer norm over channels, epsilon 1e-6, in float64."""
    x = x.double()
    centered = x - x.mean(1, keepdim=True)
    scaled = centered / (centered.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return scaled * weight[:, None, None].double() + bias[:, None, None].double()


@pytest.mark.parametrize("size_hw", [(64, 96), (75, 101)])
def test_maps_are_those_of_timm_and_normed(size_hw: tuple[int, int]) -> None:
    ours = randomized((0, 1, 2, 3))
    theirs = timm.models.convnext.ConvNeXt(depths=TINY.depths, dims=(8, 16, 32, 64), num_classes=0)
    norms = {n: t for n, t in ours.state_dict().items() if n.startswith("norm")}
    state = {n: t for n, t in ours.state_dict().items() if n not in norms}
    report = theirs.eval().load_state_dict(state, strict=False)
    assert not report.unexpected_keys
    assert all(name.startswith("head.") for name in report.missing_keys)
    images = torch.randn(2, 3, *size_hw, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x = theirs.stem(images)
        for index, (stage, map_) in enumerate(zip(theirs.stages, ours(images), strict=True)):
            x = stage(x)
            assert map_.shape[2:] == tuple(n // (4 * 2**index) for n in size_hw)
            expected = normed(x, norms[f"norm{index}.weight"], norms[f"norm{index}.bias"])
            torch.testing.assert_close(map_.double(), expected, atol=1e-4, rtol=0)


def test_the_choice_of_maps_changes_none() -> None:
    few, all_ = randomized((1, 2)), randomized((0, 1, 2, 3))
    few.load_state_dict({n: t for n, t in all_.state_dict().items() if n in few.state_dict()})
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(few(images), all_(images)[1:3], strict=True):
            torch.testing.assert_close(a, b)


def test_gradients_do_not_depend_on_recomputation() -> None:
    gradients = []
    for recompute in (False, True):
        model = randomized((0, 1, 2, 3))
        for block in model.modules():
            if isinstance(block, ConvNextBlock):
                block.gradient_checkpointing = recompute
        images = torch.ones(1, 3, 32, 32).cumsum(-1) / 32
        sum(m.square().sum() for m in model(images)).backward()  # type: ignore[union-attr]
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert gradients[0].isfinite().all()
    torch.testing.assert_close(gradients[0], gradients[1])
