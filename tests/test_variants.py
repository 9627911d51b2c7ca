"""Facts of the named models, on the meta device: nothing is computed."""

from __future__ import annotations

import pytest
import torch

from dino_core.models.dino import Dino
from dino_core.variants import VARIANTS

PYRAMIDS = {3: [8, 16, 32], 4: [4, 8, 16, 32], 2: [16, 32]}


def on_meta(name: str) -> Dino:
    with torch.device("meta"):
        return Dino(VARIANTS[name].model)


@pytest.mark.parametrize("name", VARIANTS)
def test_levels_have_the_published_strides(name: str) -> None:
    """Maps of an input that no stride divides: Swin and ResNet round up, ConvNeXt down."""
    model = on_meta(name)
    backbone = model.backbone
    config = model.config
    assert backbone.reductions == PYRAMIDS[len(config.backbone_out_indices)]
    assert config.num_levels == len(backbone.reductions) + 1  # one more by a convolution
    height, width = 201, 333
    down = config.backbone.startswith("convnext")
    maps = backbone(torch.empty(2, 3, height, width, device="meta"))
    for map_, channels, stride in zip(maps, backbone.channels, backbone.reductions, strict=True):
        sides = [n // stride if down else -(-n // stride) for n in (height, width)]
        assert map_.shape == (2, channels, *sides)


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "dino-nano"])
def test_published_variants_differ_in_their_backbone_only(name: str) -> None:
    config, base = VARIANTS[name].model, VARIANTS["dino-r50-4scale"].model
    different = {
        field
        for field in base.__dataclass_fields__
        if getattr(config, field) != getattr(base, field)
    }
    assert different <= {
        "variant", "backbone", "backbone_out_indices", "backbone_frozen_stages",
        "backbone_drop_path", "num_levels",
    }  # fmt: skip
    assert VARIANTS[name].preprocess == VARIANTS["dino-r50-4scale"].preprocess


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_frozen(name: str) -> None:
    """ResNets without stem and first stage (with five scales too); Swin and ConvNeXt learn all."""
    body = on_meta(name).backbone.body
    frozen = {n.split(".")[0] for n, p in body.named_parameters() if not p.requires_grad}
    backbone = VARIANTS[name].model.backbone
    if backbone.startswith("resnet"):
        assert frozen == {"conv1", "layer1"}
    elif backbone.startswith(("swin", "convnext")):
        assert not frozen


@pytest.mark.parametrize(
    ("name", "rates"),
    [("dino-swinl-4scale", (0.0, 0.2)), ("dino-convnextl-4scale", (0.0, 0.0))],
)
def test_stochastic_depth(name: str, rates: tuple[float, float]) -> None:
    found = [m.rate for n, m in on_meta(name).named_modules() if n.endswith("drop_path")]
    assert (found[0], found[-1]) == rates
    assert found == sorted(found)
