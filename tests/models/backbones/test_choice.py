from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from factories import tiny_config

from dino_core.config import ModelConfig
from dino_core.errors import ConfigError
from dino_core.models.backbones.backbone import Backbone
from dino_core.models.backbones.choice import with_backbone
from dino_core.variants import VARIANTS

R50 = VARIANTS["dino-r50-4scale"].model


@pytest.mark.parametrize(
    ("base", "name", "indices"),
    [
        (R50, "resnet18", (2, 3, 4)),
        (R50, "swin_tiny_patch4_window7_224", (1, 2, 3)),
        (VARIANTS["dino-swinl-5scale"].model, "resnet101", (1, 2, 3, 4)),
        (VARIANTS["dino-nano"].model, "convnextv2_atto", (2, 3)),
        (R50, "vgg11", (3, 4, 5)),
        (R50, "mvitv2_tiny", (1, 2, 3)),
    ],
)
def test_maps_of_the_same_strides(base: ModelConfig, name: str, indices: tuple[int, ...]) -> None:
    """timm counts from stride 1, 2 or 4; and its extractors name their modules in three ways."""
    config = with_backbone(base, name)
    assert config.backbone == name
    assert config.backbone_out_indices == indices
    assert (config.backbone_frozen_stages, config.backbone_drop_path) == (0, 0.0)
    assert replace(
        config, variant=base.variant, backbone=base.backbone,
        backbone_out_indices=base.backbone_out_indices,
        backbone_frozen_stages=base.backbone_frozen_stages,
        backbone_drop_path=base.backbone_drop_path,
    ) == base  # fmt: skip
    with torch.device("meta"):
        backbone, before = Backbone(config), Backbone(base)
        assert backbone.reductions == before.reductions
        maps = backbone(torch.empty(1, 3, 224, 320))
    assert [m.shape[1] for m in maps] == backbone.channels
    assert all(p.requires_grad for p in backbone.parameters())


def test_its_own_backbone_changes_nothing() -> None:
    assert with_backbone(R50, "resnet50") == R50


def test_a_network_whose_channels_come_last() -> None:
    """It takes one size only, which a fixed input has."""
    with pytest.raises(ConfigError, match="does not take images of any size"):
        with_backbone(R50, "swin_s3_tiny_224")
    config = with_backbone(R50, "swin_s3_tiny_224", (224, 224))
    with torch.device("meta"):
        maps = Backbone(config)(torch.empty(2, 3, 224, 224))
    assert [tuple(m.shape) for m in maps] == [(2, 192, 28, 28), (2, 384, 14, 14), (2, 768, 7, 7)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet1O", "unknown backbone 'resnet1O'"),
        ("vit_tiny_patch16_224", r"16 \(as in a plain vision transformer\).*of strides 8, 16, 32"),
        ("crossvit_9_240", "maps have strides 12"),
        ("hrnet_w18", "does not take images of any size"),
    ],
)
def test_what_cannot_be_one(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        with_backbone(R50, name)
    assert caught.value.hint


def test_settings_by_hand_are_checked_too() -> None:
    flat = replace(tiny_config(), backbone="vit_tiny_patch16_224", backbone_out_indices=(2, 3))
    beyond = replace(R50, backbone_out_indices=(3, 4, 5))
    beyond_timm = replace(tiny_config(), backbone_out_indices=(3, 9))
    with torch.device("meta"):
        with pytest.raises(ConfigError, match="each is coarser"):
            Backbone(flat)
        with pytest.raises(ConfigError, match=r"\[3, 4, 5\]: 'resnet50' has no such maps"):
            Backbone(beyond)
        with pytest.raises(ConfigError, match="test_efficientnet"):
            Backbone(beyond_timm)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_tiny"])
def test_norms_of_frozen_stages_learn(name: str) -> None:
    """As in the official Swin, where they belong to no stage."""
    config = replace(
        R50,
        backbone=name,
        backbone_out_indices=(0, 1, 2, 3),
        backbone_frozen_stages=1,
        num_levels=4,
    )
    with torch.device("meta"):
        body = Backbone(config).body
    frozen = {n for n, p in body.named_parameters() if not p.requires_grad}
    stage = "layers.0." if name.startswith("swin") else "stages.0."
    stem = ("patch_embed.", "stem.")
    assert frozen == {n for n, _ in body.named_parameters() if n.startswith((stage, *stem))}
    assert math.prod(body.get_parameter("norm0.weight").shape) == 96
