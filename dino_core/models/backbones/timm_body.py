"""Any timm `features_only` network as a backbone's body, its batch norms frozen.

Importing this module imports timm, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from dino_core.config import nearest
from dino_core.errors import ConfigError
from dino_core.models.backbones.frozen_norm import FrozenBatchNorm, SameConv2d


def timm_body(name: str, out_indices: Sequence[int], drop_path: float = 0.0) -> nn.Module:
    """The network of that name, giving the maps `out_indices`.

    Like the bodies of this package it has the attributes `channels`, `reductions` and `stage_ends`:
    of each map up to the last one, its channel count, stride and the module that ends it.

    Raises:
        ConfigError: timm has no such network or map, it has no stochastic depth where one is asked
            for, or no map is coarser than the one before.
    """
    extra = {"drop_path_rate": drop_path} if drop_path else {}
    body = _created(name, out_indices=tuple(out_indices), **extra)
    info = body.feature_info.info
    body.channels = tuple(stage["num_chs"] for stage in info)
    body.reductions = tuple(stage["reduction"] for stage in info)
    body.stage_ends = _module_names(body, [stage["module"] for stage in info])
    body.gives_channels_last = str(getattr(body, "output_fmt", "")).endswith("NHWC")
    strides = [body.reductions[i] for i in out_indices]
    if strides != sorted(set(strides)):
        raise no_pyramid(name, strides)
    _replace_layers(body)
    return cast(nn.Module, body)


def _module_names(body: nn.Module, modules: Sequence[str]) -> tuple[str, ...]:
    """Where timm's extractors put the modules of a network; the last of all where none is known."""
    names = [name for name, _ in body.named_modules()]
    return tuple(
        next((n for n in (m, m.replace(".", "_"), f"model.{m}") if n in names), names[-1])
        for m in modules
    )


def timm_reductions(name: str) -> tuple[int, ...]:
    """The stride of each map of the network of that name. Raises ConfigError as `timm_body`."""
    with torch.device("meta"):
        info = _created(name).feature_info.info
    return tuple(stage["reduction"] for stage in info)


def no_pyramid(name: str, strides: Sequence[int], wanted: Sequence[int] = ()) -> ConfigError:
    """What to say of a network whose maps have these strides."""
    needed = (
        f" of strides {', '.join(map(str, wanted))}"
        if wanted
        else ", of which each is coarser than the one before"
    )
    kind = " (as in a plain vision transformer)" if len(set(strides)) == 1 < len(strides) else ""
    return ConfigError(
        f"backbone '{name}': its maps have strides {', '.join(map(str, strides))}{kind}; this DINO "
        f"needs maps{needed}",
        "take a network with a pyramid, e.g. resnet34, convnext_tiny, swin_tiny_patch4_window7_224",
    )


def _created(name: str, **options: Any) -> Any:
    """The module that timm makes. Raises ConfigError."""
    if not timm.is_model(name):
        raise ConfigError(
            f"unknown backbone '{name}'",
            nearest(name, timm.list_models()) or "see timm.list_models()",
        )
    try:
        return timm.create_model(name, features_only=True, **options)
    except (RuntimeError, TypeError, AssertionError, IndexError, ValueError) as error:
        asked = ", ".join(f"{key} {value}" for key, value in options.items()) or "its feature maps"
        raise ConfigError(
            f"backbone '{name}': timm {timm.__version__} does not give {asked} ({error})",
            "model.backbone_out_indices counts its maps from 0; others: another backbone",
        ) from error


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
