"""Any timm `features_only` network as a backbone's body, its batch norms frozen.

Importing this module imports timm, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import timm
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from dino_core.config import nearest
from dino_core.errors import ConfigError
from dino_core.models.frozen_norm import FrozenBatchNorm, SameConv2d


def timm_body(name: str, out_indices: Sequence[int]) -> nn.Module:
    """The network of that name, giving the maps `out_indices`.

    Like the bodies of this package it has the attributes `channels`, `reductions` and `stages`:
    of each map up to the last one, its channel count, stride and the module that ends it.

    Raises:
        ConfigError: timm has no such network.
    """
    if not timm.is_model(name):
        raise ConfigError(
            f"unknown backbone '{name}'",
            nearest(name, timm.list_models()) or "see timm.list_models()",
        )
    body: Any = timm.create_model(name, features_only=True, out_indices=tuple(out_indices))
    info = body.feature_info.info
    body.channels = tuple(stage["num_chs"] for stage in info)
    body.reductions = tuple(stage["reduction"] for stage in info)
    body.stages = tuple(stage["module"] for stage in info)
    _replace_layers(body)
    return cast(nn.Module, body)


def _replace_layers(body: nn.Module) -> None:
    """Frozen batch norms and "same" convolutions of this package instead of the network's own."""
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, _frozen(child))
            elif type(child) is Conv2dSame:
                setattr(parent, name, _same(child))


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm:
    """Its statistics and parameters; timm's own kind has an activation and a dropout inside."""
    after = [getattr(norm, part, nn.Identity()) for part in ("drop", "act")]
    act = nn.Sequential(*(part for part in after if not isinstance(part, nn.Identity)))
    frozen = FrozenBatchNorm(norm.num_features, norm.eps, act if len(act) else None)
    state = norm.state_dict()
    frozen.load_state_dict({name: state[name] for name in frozen.state_dict() if name in state})
    return frozen


def _same(conv: Conv2dSame) -> SameConv2d:
    same = SameConv2d(
        conv.in_channels,
        conv.out_channels,
        cast("tuple[int, int]", conv.kernel_size),
        cast("tuple[int, int]", conv.stride),
        dilation=cast("tuple[int, int]", conv.dilation),
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    same.load_state_dict(conv.state_dict())
    return same
