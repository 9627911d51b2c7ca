"""Every family states facts about itself that its modules and its maps confirm."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from factories import tiny_config
from torch import nn

from dino_core.models.backbones.backbone import Backbone
from dino_core.models.backbones.body import Body
from dino_core.models.backbones.table import FACTORIES, make_body, reductions_of

FAMILIES = ["tf_efficientnet_lite0", "resnet50", "swin_tiny_patch4_window7_224", "convnext_tiny"]
FROM_TIMM = ["resnet18", "convnextv2_atto"]


@pytest.mark.parametrize("name", [*FAMILIES, *FROM_TIMM])
def test_facts_are_those_of_the_modules(name: str) -> None:
    reductions = list(reductions_of(name))
    indices = tuple(range(len(reductions)))
    with torch.device("meta"):
        body: Body = make_body(name, indices, 0.0)
        network = cast(nn.Module, body)
        maps = network(torch.empty(1, 3, 256, 384))
    assert list(body.reductions) == reductions
    assert [m.shape[1] for m in maps] == list(body.channels)
    assert [256 // m.shape[2] for m in maps] == [384 // m.shape[3] for m in maps] == reductions
    modules = dict(network.named_modules())
    for names in (
        body.stage_ends,
        body.output_norms,
        body.recomputable_blocks,
        body.parts_to_compile,
    ):
        assert modules.keys() >= {*names}
    switched = {n for n, m in modules.items() if hasattr(m, "gradient_checkpointing")}
    assert {*body.recomputable_blocks} == (switched if name in FACTORIES else set())


def test_parts_to_compile() -> None:
    """The whole network, but the blocks of Swin."""
    config = replace(tiny_config(), backbone_out_indices=(2, 3), num_levels=2)
    with torch.device("meta"):
        swin, resnet = (
            Backbone(replace(config, backbone=name))
            for name in ("swin_tiny_patch4_window7_224", "resnet50")
        )
    assert resnet.parts_to_compile() == [resnet.body]
    assert [type(part).__name__ for part in swin.parts_to_compile()] == ["SwinBlock"] * 12


def test_switch_of_recomputation() -> None:
    config = replace(
        tiny_config(), backbone="convnext_tiny", backbone_out_indices=(2, 3), num_levels=2
    )
    with torch.device("meta"):
        backbone = Backbone(config)
    for enabled in (True, False):
        backbone.set_gradient_checkpointing(enabled)
        blocks = [m for m in backbone.modules() if hasattr(m, "gradient_checkpointing")]
        assert len(blocks) == 18 and {b.gradient_checkpointing for b in blocks} == {enabled}
